"""Training speed of ours beside PyTorch's nn.Transformer, and of what feeds it.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train.py                        # updates of the paper's base and big model
    python benchmarks/train.py --part dropout         # what dropout costs
    python benchmarks/train.py --part pipeline        # tokenising and batches
    python benchmarks/train.py --part scaling         # more virtual devices on the same processors
    python benchmarks/train.py --quick                # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import Worker, log, machine, require, show, take_turns

from transformer.command_line import Parser, run
from transformer.data.phrases import corpus
from transformer.data.text import Parallel, read_pairs

SYSTEMS = ("ours", "pytorch", "pytorch-compile")
COLUMNS = {
    **{"part": -10, "system": -15, "model": -5, "dtype": -8, "devices": 7, "rows": 5, "length": 6, "workers": 7},
    **{"dropout": 7, "of_a_step": 9},
    **{"shapes": 6, "padding": 7, "tokens_per_s": 12, "tokens_per_s_range": 18, "pairs_per_s": 11, "ours_is_times": 13},
    **{"of_matrix_rate": 14, "compile_s": 9, "cached_compile_s": 16, "peak_mib": 8, "loss": 7},
}


def script(name: str, options: Namespace, environment: dict[str, str] | None = None, **settings: Any) -> Worker:
    common = {"threads": options.threads, "device": options.device, "vocab_size": options.vocab_size} | settings
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share a GPU
    return Worker("train_systems.py", name, memory | (environment or {}), **common)


def speeds(runs: list[dict], amount: float | str) -> dict[str, Any]:
    """Median and range of the amount (or the answer's entry of that name) a second."""
    per_s = [(run[amount] if isinstance(amount, str) else amount) / run["seconds"] for run in runs]
    return {
        "tokens_per_s": round(statistics.median(per_s)),
        "tokens_per_s_range": [round(min(per_s)), round(max(per_s))],
    }


# ---- Updates ---------------------------------------------------------------------------------------------------------
def steps(o: Namespace) -> Iterator[dict[str, Any]]:
    """Rows of each model and type; the systems take turns."""
    for model, dtype in itertools.product(o.models, o.dtypes):
        settings = {"model": model, "dtype": dtype, "rows": o.rows, "length": o.length}
        with tempfile.TemporaryDirectory() as cache:  # so that the first compilation is one
            fresh_cache = {"TRANSFORMER_CACHE": cache}
            compiling = script("ours", o, fresh_cache, **settings)
            compiling.close()
            workers = {name: script(name, o, fresh_cache if name == "ours" else None, **settings) for name in o.systems}
            matrix = script("matrix", o, dtype=dtype)
            runs = take_turns(workers, o.updates, o.repeats)
            rate = matrix.ask(5)["flops_per_s"]
            flops = workers["ours"].ready["flops"]
            target = o.rows * o.length * o.updates
            fastest = {name: speeds(runs[name], target)["tokens_per_s"] for name in workers}
            for name, worker in workers.items():
                took = statistics.median(answer["seconds"] for answer in runs[name]) / o.updates
                yield {
                    **{"part": "steps", "system": name, **settings, "parameters": worker.ready["parameters"]},
                    **speeds(runs[name], target),
                    "ours_is_times": round(fastest["ours"] / fastest[name], 2),
                    "of_matrix_rate": f"{flops / took / rate:.1%}",
                    "matrix_flops_per_s": rate,
                    "compile_s": round((compiling if name == "ours" else worker).ready["compile_s"], 1),
                    "cached_compile_s": round(worker.ready["compile_s"], 1) if name == "ours" else None,
                    "peak_mib": round(max(answer["peak_mib"] for answer in runs[name])),
                    "loss": round(runs[name][-1]["losses"][-1], 3),
                }
            for worker in (*workers.values(), matrix):
                worker.close()


def dropout(o: Namespace) -> Iterator[dict[str, Any]]:
    """Rows of ours as it is, and without dropout."""
    for model, dtype in itertools.product(o.models, o.dtypes):
        settings = {"model": model, "dtype": dtype, "rows": o.rows, "length": o.length}
        workers = {rate: script("ours", o, **settings, dropout=rate) for rate in (None, 0.0)}
        runs = take_turns(workers, o.updates, o.repeats)
        for rate, worker in workers.items():
            # Of the same turn: a machine's speed changes from one to the next.
            share = statistics.median(
                1 - b["seconds"] / a["seconds"] for a, b in zip(runs[None], runs[0.0], strict=True)
            )
            yield {
                **{"part": "dropout", "system": "ours", **settings, "dropout": worker.ready["dropout"]},
                **speeds(runs[rate], o.rows * o.length * o.updates),
                "of_a_step": f"{share:.1%}" if rate is None else None,
            }
            worker.close()


def scaling(o: Namespace) -> Iterator[dict[str, Any]]:
    """Rows of ours with 1, 2, 4 and 8 virtual devices on the same processors, and the same batch."""
    for devices in (1, 2, 4, 8):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        settings = {"model": o.models[0], "dtype": o.dtypes[0], "rows": o.rows, "length": o.length}
        worker = script("ours", o, flags, **settings)
        runs = take_turns({"ours": worker}, o.updates, o.repeats)["ours"]
        yield {
            **{"part": "scaling", "system": "ours", **settings, "devices": devices},
            **speeds(runs, o.rows * o.length * o.updates),
            "peak_mib": round(max(answer["peak_mib"] for answer in runs)),
        }
        worker.close()


# ---- What feeds them -------------------------------------------------------------------------------------------------
def pipeline(o: Namespace) -> Iterator[dict[str, Any]]:
    """Rows of tokenising by one and by all processes, and of batches packed and bucketed."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder), o.pairs, o.text)
        text = {"workdir": folder, "vocab_size": o.pieces}
        tokenising = script("tokenising", o, **text)
        once = {}
        for workers in dict.fromkeys((1, o.threads)):
            runs = [tokenising.ask(workers) for _ in range(o.repeats)]
            once[workers] = statistics.median(answer["pairs"] / answer["seconds"] for answer in runs)
            yield {
                **{"part": "tokenising", "system": "ours", "workers": workers},
                **{"pairs_per_s": round(once[workers]), "times_one": round(once[workers] / once[1], 2)},
            }
        tokenising.close()
        for packing in (True, False):
            worker = script("pipeline", o, **text, packing=packing, batch_tokens=o.batch_tokens)
            runs = take_turns({"ours": worker}, o.batches, o.repeats)["ours"]
            yield {
                **{"part": "batches", "system": "ours", "packing": packing, "shapes": worker.ready["shapes"]},
                "padding": f"{worker.ready['padding']:.1%}",
                **speeds(runs, "tokens"),
            }
            worker.close()


def write_text(folder: Path, pairs: int, text: list[str] | None) -> None:
    """train.en and train.de: the given files, repeated as often as needed, or generated phrases, a few a line."""
    if text:
        lines = list(read_pairs(Parallel(*text)))
        sides = zip(*itertools.islice(itertools.cycle(lines), pairs), strict=True)
    else:
        made, draw = corpus.pairs("train", ("en", "de")), random.Random(0)
        rows = []
        while len(rows) < pairs:
            several = list(itertools.islice(made, 1 + draw.randrange(4)))
            if not several:
                made = corpus.pairs("train", ("en", "de"))
                continue
            rows.append([" ".join(side) for side in zip(*several, strict=True)])
        sides = zip(*rows, strict=True)
    for language, side in zip(("en", "de"), sides, strict=True):
        (folder / f"train.{language}").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")


PARTS = {"steps": steps, "dropout": dropout, "pipeline": pipeline, "scaling": scaling}


# ---- The command -----------------------------------------------------------------------------------------------------
def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/train.py", __doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="steps")
    parser.add_argument("--models", nargs="+", choices=["base", "big", "small"], help="default: base big")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rows", type=int, default=64, help="sentences of an update (default 64)")
    parser.add_argument("--length", type=int, default=32, help="pieces of each, on either side (default 32)")
    parser.add_argument("--vocab-size", type=int, default=37_000, help="pieces in the vocabulary (default 37,000)")
    parser.add_argument("--pieces", type=int, default=8_000, help="pieces in the pipeline's (default 8,000)")
    parser.add_argument("--updates", type=int, help="updates of a timed run (default 3)")
    parser.add_argument("--repeats", type=int, help="timed runs (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each system")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=int, help="lines of the pipeline's corpus (default 200,000)")
    parser.add_argument(
        "--text", nargs=2, metavar=("SOURCE", "TARGET"), help="the pipeline's corpus, instead of phrases"
    )
    parser.add_argument("--batches", type=int, help="batches of a timed run of the pipeline (default 400)")
    parser.add_argument("--batch-tokens", type=int, default=25_000, help="of the pipeline's batches (default 25,000)")
    parser.add_argument("--quick", action="store_true", help="a toy model and little work: a minute or two")
    parser.add_argument("--json", action="store_true", help="print one list of rows on standard output")
    o = parser.parse_args(arguments)
    quick = {"models": ["small"], "updates": 1, "repeats": 1, "pairs": 30_000, "batches": 20}
    full = {"models": ["base", "big"], "updates": 3, "repeats": 5, "pairs": 200_000, "batches": 400}
    for name, value in (quick if o.quick else full).items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if o.quick:
        o.rows, o.length, o.vocab_size, o.pieces = 4, 8, 1_000, 1_000
    if o.part in ("steps", "all") and set(o.systems) - {"ours"}:
        require(["torch"])
    if "ours" not in o.systems:
        o.systems = ["ours", *o.systems]
    log(machine(("jax", "torch")))
    parts = PARTS.values() if o.part == "all" else [PARTS[o.part]]
    rows = show(itertools.chain.from_iterable(part(o) for part in parts), COLUMNS, o.json)
    if o.json:
        print(json.dumps(rows))
    elif o.part in ("steps", "all"):
        print(f"medians of target pieces a second over {o.updates} updates; one run before each is left out")


if __name__ == "__main__":
    run(main)
