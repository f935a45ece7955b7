"""The parts of gpu.py, each in a process of its own; and those that measure the device, its kernel and updates.

    python benchmarks/gpu_parts.py PART '{"seed": 0, "quick": true, "device": "cpu", "limit": 60, "folder": ...}'

A row is one line of JSON on standard output, there as soon as it is measured.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from gpu_workers import STARTING, Emit, Settings, Timed, at_once, missing, rates, share, turns
from train_systems import matrix, model_config, packed_pieces

from transformer.command_line import run
from transformer.config import PAD


# ---- What the device can do ------------------------------------------------------------------------------------------
def products(s: Settings, emit: Emit) -> None:
    """The rate of large products of matrices, in each type and size; and of reading and writing device memory."""
    import jax
    import jax.numpy as jnp

    count, sizes, numbers = (2, (256, 512), 2**20) if s.quick else (40, (4096, 8192), 2**28)
    for dtype in ("bfloat16", "float32"):
        _, rate = matrix(dtype, sizes)
        for size, flops in rate(count)["of_sizes"].items():
            emit({"part": "products", "what": dtype, "size": size, "flops_per_s": float(f"{flops:.4g}")})
    x = jax.random.normal(jax.random.key(s.seed), (numbers,), jnp.float32)
    scale = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
    x = jax.block_until_ready(scale(x))
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count):
            x = scale(x)
        jax.block_until_ready(x)
        best = max(best, 2 * x.nbytes * count / (time.perf_counter() - began))
    emit({"part": "products", "what": "bandwidth", "size": x.nbytes, "bytes_per_s": float(f"{best:.4g}")})


# ---- Attention -------------------------------------------------------------------------------------------------------
class Case(NamedTuple):
    name: str
    H: int
    K: int
    S: int
    mask_BTS: Any


def cases(s: Settings) -> Iterator[Case]:
    """Each kind of mask, for heads of each size."""
    import numpy as np

    B, T, N, heads = (2, 32, 4, (8,)) if s.quick else (8, 256, 8, (64, 128))
    rng = np.random.default_rng(s.seed)
    real_BS = np.arange(T) < rng.integers(T // 4, T, B)[:, None]
    segments_BT = np.cumsum(rng.random((B, T)) < 8 / T, axis=1)
    packed_BTT = segments_BT[:, :, None] == segments_BT[:, None]
    causal_TT = np.tri(T, dtype=bool)
    half_BS = real_BS[:, : T // 2] | (np.arange(T // 2) == 0)
    nowhere_BTT = packed_BTT & causal_TT & (rng.random((B, T)) < 0.75)[:, :, None]
    nowhere_BTT[0] = False
    masks = {
        "padding": real_BS[:, None],
        "causal": causal_TT[None],
        "packed": packed_BTT,
        "packed and causal": packed_BTT & causal_TT,
        "cross": half_BS[:, None],
        "fewer key heads": real_BS[:, None] & causal_TT,
        "rows that attend nowhere": nowhere_BTT,
    }
    for H, (name, mask_BTS) in itertools.product(heads, masks.items()):
        yield Case(name, H, N // 4 if name == "fewer key heads" else N, mask_BTS.shape[2], mask_BTS)


def compare(s: Settings, case: Case) -> dict[str, Any]:
    """The row of a case. An error is the largest difference from float32, as a share of its largest number."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from transformer.model.attention import KV, attend, fused

    B, T, N = (2, 32, 4) if s.quick else (8, 256, 8)
    shapes = (B, T, N, case.H), (B, case.K, case.H, case.S), (B, case.K, case.S, case.H), (B, T, N, case.H)
    keys = jax.random.split(jax.random.key(s.seed), 4)
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    mask_BTS = jnp.asarray(case.mask_BTS)
    kernel = "cudnn" if s.device == "cuda" else "xla"

    def all_of(attention: Any, mask_BTS: Any, q: Any, k: Any, v: Any, dy: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(lambda q, k, v: attention(q, KV(k, v), mask_BTS), q, k, v)
        return y, *pull(dy)

    @jax.jit
    def three(mask_BTS: Any, *inputs: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # a GPU's default rounds float32 to 10 bits
            exact = all_of(lambda *a: attend(*a)[0], mask_BTS, *(x.astype(jnp.float32) for x in inputs))
        plain = all_of(lambda *a: attend(*a)[0], mask_BTS, *inputs)
        return exact, plain, all_of(lambda *a: fused(*a, implementation=kernel), mask_BTS, *inputs)

    exact, plain, by_kernel = jax.tree.map(lambda x: np.asarray(x, np.float32), three(mask_BTS, *inputs))
    row = {"part": "kernel", "case": case.name, "head_size": case.H, "key_heads": case.K, "kernel": kernel}
    nowhere_BT = np.broadcast_to(~case.mask_BTS.any(axis=2), (B, T))
    # The outputs and the gradients of queries that attend nowhere are zero, exactly.
    ok = all(np.isfinite(x).all() for x in by_kernel) and not any(x[nowhere_BT].any() for x in by_kernel[:2])
    for name, want, *both in zip(("output", "dq", "dk", "dv"), exact, plain, by_kernel, strict=True):
        of_plain, of_kernel = (float(np.abs(x - want).max() / np.abs(want).max()) for x in both)
        row |= {f"{name}_error": float(f"{of_kernel:.3g}"), f"{name}_plain_error": float(f"{of_plain:.3g}")}
        ok &= of_kernel <= 3 * of_plain + 2**-8  # half a unit in the last place of 16 bits
    return row | {"rows_nowhere": int(nowhere_BT.sum()), "ok": bool(ok)}


def kernel(s: Settings, emit: Emit) -> None:
    """The fused kernel against plain attention, both in bfloat16, both held against plain attention in float32."""
    with ThreadPoolExecutor(min(4, s.threads)) as pool:  # compiling takes nearly all of the time
        for case, future in [(case, pool.submit(compare, s, case)) for case in cases(s)]:
            try:
                emit(future.result())
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                emit({"part": "kernel", "case": case.name, "head_size": case.H, "failed": reason})


# ---- Training --------------------------------------------------------------------------------------------------------
SYSTEMS = {  # of training: script, its system, the kernel
    "ours": ("train_systems.py", "ours", "cudnn"),
    "ours-plain": ("train_systems.py", "ours", "plain"),
    "pytorch": ("sdpa.py", "eager", "sdpa"),
    "pytorch-compile": ("sdpa.py", "compile", "sdpa"),
}


def training(s: Settings, emit: Emit) -> None:
    """Whole updates of one model at the paper's batch, packed, by these systems in turns."""
    from transformer.training.flops import update_flops

    rows, length, vocab_size, updates, repeats = (4, 64, 1_000, 1, 2) if s.quick else (96, 256, 37_000, 10, 6)
    shape = {"dtype": "bfloat16", "rows": rows, "length": length, "vocab_size": vocab_size}
    model, dropout = "small" if s.quick else s.model, model_config(s.model).dropout
    flops = update_flops(model_config(model).with_vocabulary(vocab_size), rows, length, length)
    target = int((packed_pieces(rows, length, vocab_size, s.seed)[1] != PAD).sum())
    of_all = {"model": model, **shape, "packed": True, "seed": s.seed, "device": s.device, "threads": s.threads}

    def about(name: str) -> dict[str, Any]:
        kind = {"part": "training", "model": s.model, "system": name, "kernel": SYSTEMS[name][2]}
        return kind | shape | {"dropout": dropout}

    def failed(name: str, reason: str) -> None:
        emit({**about(name), "failed": reason})

    def start(name: str) -> Timed:
        script, system, kernel = SYSTEMS[name]
        settings = of_all | ({"changes": {"attention_kernel": kernel}, "dropout": dropout} if "ours" in name else {})
        worker = Timed(script, system, s.end - STARTING, **settings)
        worker.ask(2)  # not counted
        return worker

    systems = []
    for name in s.systems:
        if name.startswith("pytorch") and (reason := missing("torch")):
            emit({**about(name), "skipped": reason})
        else:
            systems.append(name)
    workers = at_once({name: lambda name=name: start(name) for name in systems}, failed)
    runs = turns(s, workers, lambda _, worker: worker.ask(updates), repeats, failed)
    ours = s.known.get(f"training {s.model}")
    for name, answers in runs.items():
        found = rates(answers, target * updates)
        if name == "ours":
            ours = found["tokens_per_s"]
        per_s = flops * found["tokens_per_s"] / target
        emit(
            {
                **about(name),
                **found,
                "ms_per_update": round(1e3 * target / found["tokens_per_s"], 2),
                "model_flops_per_s": float(f"{per_s:.4g}"),
                "of_product_rate": share(per_s, s.known.get("bfloat16")),
                "ours_is_times": share(ours, found["tokens_per_s"]) if ours else None,
                "compile_s": round(workers[name].ready["compile_s"], 1),
                "device_peak_mib": round(max(answer["device_peak_mib"] for answer in answers)),
                "parameters": workers[name].ready["parameters"],
                "loss": round(answers[-1]["losses"][-1], 3),
            }
        )


# ---- The process -----------------------------------------------------------------------------------------------------
def probe(s: Settings, emit: Emit) -> None:
    """What the machine is."""
    import contextlib
    import platform
    from importlib import metadata

    import jax
    from rows import device_name

    versions = {"python": platform.python_version()}
    for package in ("jax", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    emit({"part": "probe", "backend": jax.default_backend(), "device": device_name(), "versions": versions})


def main(arguments: list[str]) -> None:
    import gpu_decoding
    import gpu_runs

    parts = {"probe": probe, "products": products, "kernel": kernel, "training": training}
    parts |= {"decoding": gpu_decoding.decoding, "deterministic": gpu_runs.deterministic, "resume": gpu_runs.resume}
    parts |= {"wmt_mini": gpu_runs.wmt_mini}
    # Standard output is for rows alone; whatever a library prints goes to standard error.
    out, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(2, 1)

    def emit(row: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(row), file=out, flush=True)

    name, settings = arguments
    parts[name](Settings(**json.loads(settings)), emit)


if __name__ == "__main__":
    run(main)
