"""The systems that train.py compares, each in a process of its own: whole updates of the paper's models.

    python benchmarks/train_systems.py SYSTEM '{"model": "base", "dtype": "float32", ...}'

A request is how many updates to do, and its answer how long they took and the losses. All see the same pieces, no
padding among them; dropout, label smoothing and Adam are the paper's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transformer.config import BOS, EOS, PAD

SMALL = {"d_model": 64, "d_ff": 128, "heads": 4, "encoder_layers": 2, "decoder_layers": 2}


def pieces(rows: int, length: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and target: random pieces and an eos."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, vocab_size, (2, rows, length)).astype(np.int32)
    source[:, -1] = target[:, -1] = EOS
    return source, target


def packed_pieces(rows: int, length: int, vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Source and target: in each row several sentences of 20 to 40 random pieces, the last one an eos, then padding.

    As many sentences on either side; 98 % of a row of 256 is filled, and each row ends with padding.
    """
    rng = np.random.default_rng(seed)
    half = max(1, length // 64)
    free = length - max(1, length // 64)
    each = free // (2 * half)

    def side() -> np.ndarray:
        tokens_RT = np.full((rows, length), PAD, np.int32)
        for row_T in tokens_RT:
            longer = rng.integers(-(each // 3), each // 3 + 1, half)
            lengths = rng.permutation(each + np.concatenate([longer, -longer]))
            lengths[: free - each * 2 * half] += 1
            row_T[: lengths.sum()] = rng.integers(4, vocab_size, lengths.sum())
            row_T[np.cumsum(lengths) - 1] = EOS
        return tokens_RT

    return side(), side()


def model_config(model: str, **changes: Any) -> Any:
    """The paper's base or big model, or a small one, with some fields changed."""
    import dataclasses

    from transformer.config import BASE, BIG

    shape = {"base": BASE, "big": BIG, "small": dataclasses.replace(BASE, **SMALL)}[model]
    return dataclasses.replace(shape, **changes)


def ours(
    model: str,
    dtype: str,
    rows: int,
    length: int,
    vocab_size: int,
    device: str,
    dropout: float | None = None,
    *,
    changes: dict[str, Any] | None = None,
    packed: bool = False,
    seed: int = 0,
    digest: bool = False,
    **_: Any,
) -> Any:
    """An update as train.py does it; with another rate of dropout, if one is given.

    `changes`: fields of the model that differ. With `packed` a row holds several sentences. With `digest` an answer
    has the sha256 of the parameters.
    """
    import jax

    from transformer.command_line import set_up_jax
    from transformer.config import Config, DataConfig, TrainConfig
    from transformer.training.flops import update_flops

    set_up_jax()
    if device == "cuda" and jax.default_backend() != "gpu":
        raise SystemExit("--device cuda: this JAX sees no GPU")
    kernel = "cudnn" if device == "cuda" and dtype == "bfloat16" else "plain"
    fields = {"dtype": dtype, "attention_kernel": kernel} | ({} if dropout is None else {"dropout": dropout})
    shape = model_config(model, **fields | (changes or {}))
    config = Config(model=shape, data=DataConfig(packing=packed), train=TrainConfig(seed=seed))
    sides = packed_pieces(rows, length, vocab_size, seed) if packed else pieces(rows, length, vocab_size)
    update, state, batch = _set_up(config, vocab_size, *sides)
    began = time.perf_counter()
    program = update.lower(state, batch).compile()
    ready = {
        "compile_s": time.perf_counter() - began,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "flops": update_flops(config.model.with_vocabulary(vocab_size), rows, length, length),
        "dropout": config.model.dropout,
        "pieces": int((sides[1] != PAD).sum()),
    }

    def updates(count: int) -> dict[str, Any]:
        nonlocal state
        losses = []
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = program(state, batch)
            losses.append(metrics["loss"])
        losses = [float(loss) for loss in losses]
        answer = {"seconds": time.perf_counter() - began, "losses": losses}
        statistics = jax.devices()[0].memory_stats() or {}  # a CPU has none
        answer["device_peak_mib"] = statistics.get("peak_bytes_in_use", 0) / 2**20
        return answer | ({"sha256": sha256_of(state.params)} if digest else {})

    return ready, updates


def _set_up(config: Any, vocab_size: int, source: np.ndarray, target: np.ndarray) -> tuple[Any, Any, Any]:
    """The update of training, the state before the first, and the batch on the devices."""
    from transformer.config import MeshConfig
    from transformer.model import build
    from transformer.training.objectives import sequences
    from transformer.training.sharding import batch_sharding, make_mesh, put
    from transformer.training.step import cut, program

    mesh, model = make_mesh(MeshConfig()), build(config.model.with_vocabulary(vocab_size))
    made = program(sequences(model, config.train, packing=config.data.packing), config.train, mesh)
    batch = cut({"source": source, "target": target}, mesh, 1)
    return made.update, made.init(), put(batch, batch_sharding(mesh, micro_batches=True))


def sha256_of(params: Any) -> str:
    """The sha256 of all parameters, bit for bit."""
    import hashlib

    import jax

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return total.hexdigest()


def matrix(dtype: str, sizes: Sequence[int] = (), **_: Any) -> Any:
    """JAX's rate at products of square matrices, as large as a device still does fast; the best of several sizes."""
    import jax
    import jax.numpy as jnp

    sizes = sizes or ((1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype))

    def rate(count: int) -> dict[str, Any]:
        rates = {}
        for size in sizes:
            # Random numbers: ones, or zeros, cost a GPU less power. Scaled so that products keep their size.
            a = jax.random.normal(jax.random.key(0), (size, size), dtype) * size**-0.5
            b = product(a, a)
            jax.block_until_ready(b)
            began = time.perf_counter()
            for _ in range(count):
                b = product(a, b)
            jax.block_until_ready(b)
            rates[size] = 2 * size**3 * count / (time.perf_counter() - began)
        return {"flops_per_s": max(rates.values()), "of_sizes": rates}

    return {}, rate


def pytorch(
    model: str, dtype: str, rows: int, length: int, vocab_size: int, threads: int, device: str, compiled: bool, **_: Any
) -> Any:
    """`nn.Transformer` with tied embeddings and fused Adam, under autocast in bfloat16."""
    import torch
    from nn_transformer import Network
    from updates import keep_memory

    from transformer.config import BASE, BIG

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if device == "cpu":
        keep_memory()
    else:
        torch.set_float32_matmul_precision("high")
    c = {"base": vars(BASE), "big": vars(BIG), "small": vars(BASE) | SMALL}[model]
    network = Network(c, vocab_size, length).to(device).train()
    adam = torch.optim.Adam(network.parameters(), lr=1e-7, betas=(0.9, 0.98), eps=1e-9, fused=True)
    source, target = (torch.from_numpy(ids).long().to(device) for ids in pieces(rows, length, vocab_size))
    before = torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], 1)
    forward = torch.compile(network) if compiled else network

    def update() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(source, before, target)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return loss.detach()

    took = []
    for _ in range(2):
        began = time.perf_counter()
        float(update())
        took.append(time.perf_counter() - began)
    ready = {
        "compile_s": took[0] - took[1] if compiled else 0.0,
        "parameters": sum(p.numel() for p in network.parameters()),
    }

    def updates(count: int) -> dict[str, Any]:
        began = time.perf_counter()
        losses = [float(loss) for loss in [update() for _ in range(count)]]
        return {"seconds": time.perf_counter() - began, "losses": losses}

    return ready, updates


def pipeline(workdir: str, threads: int, packing: bool, vocab_size: int, batch_tokens: int, **_: Any) -> Any:
    """The batches of training from the cache, up to the devices; a request is how many."""
    import jax

    from transformer.command_line import set_up_jax
    from transformer.config import Config, DataConfig, MeshConfig, TrainConfig
    from transformer.tasks.translation import Translation
    from transformer.training.feed import Feed
    from transformer.training.sharding import make_mesh

    set_up_jax()
    data = DataConfig(
        source=(f"{workdir}/train.en",),
        target=(f"{workdir}/train.de",),
        vocab_size=vocab_size,
        packing=packing,
        cache_dir=f"{workdir}/cache",
        workers=threads,
    )
    batches = Translation.build(Config(data=data, train=TrainConfig(batch_tokens=batch_tokens))).batches()
    feed = Feed(batches, make_mesh(MeshConfig()))
    ready = {"padding": batches.padding, "shapes": len(batches.shapes)}

    def read(count: int) -> dict[str, Any]:
        stream = feed.stream(0, count, 4)
        positions = 0
        began = time.perf_counter()
        for host in stream:
            batch = feed.put(host)
            positions += sum(x.size for x in batch.values())
        jax.block_until_ready(batch)
        return {"seconds": time.perf_counter() - began, "tokens": positions * (1 - batches.padding)}

    return ready, read


def tokenising(workdir: str, threads: int, vocab_size: int, **_: Any) -> Any:
    """Tokenising a corpus anew; a request is by how many processes."""
    import shutil

    from transformer.config import DataConfig
    from transformer.data.text import Parallel
    from transformer.data.tokenizer import tokenizer
    from transformer.data.tokens import tokenize

    text = Parallel(f"{workdir}/train.en", f"{workdir}/train.de")
    model = tokenizer(DataConfig(vocab_size=vocab_size, cache_dir=f"{workdir}/cache"), (text,))

    def tokenise(workers: int) -> dict[str, Any]:
        shutil.rmtree(f"{workdir}/again", ignore_errors=True)
        began = time.perf_counter()
        made = tokenize(text, model, folder=f"{workdir}/again", workers=workers)
        return {"seconds": time.perf_counter() - began, "pairs": len(made)}

    return {}, tokenise


SYSTEMS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "pytorch": lambda **settings: pytorch(compiled=False, **settings),
    "pytorch-compile": lambda **settings: pytorch(compiled=True, **settings),
    "matrix": matrix,
    "pipeline": pipeline,
    "tokenising": tokenising,
}

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    from side_by_side import answer_requests

    answer_requests(SYSTEMS[sys.argv[1]], json.loads(sys.argv[2]))
