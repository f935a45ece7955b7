"""Speed of our language model beside Hugging Face's GPT-2, with the same random weights: generation and training.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpt.py                    # 124M parameters; a quarter of an hour on two cores
    python benchmarks/gpt.py --part train
    python benchmarks/gpt.py --quick            # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import Worker, log, machine, require, show, take_turns

from transformer.command_line import Parser, run
from transformer.command_line.huge_pages import VALUE, VARIABLE

COLUMNS = {
    **{"part": -8, "system": -11, "dtype": -8, "batch": 5, "length": 6, "tokens_per_s": 12, "tokens_per_s_range": 18},
    **{"ours_is_times": 13, "agreement": 9, "peak_mib": 8},
}
SYSTEMS = ("ours", "huggingface")
DTYPES = ("float32", "bfloat16", "int8")


def workers_of(o: Namespace, part: str, folder: str, **settings: Any) -> dict[tuple[str, str], Worker]:
    """A worker for each system and type, by (system, type)."""
    common = {"threads": o.threads, "device": o.device, "size": o.size, "folder": folder, **settings}
    as_train_py = {VARIABLE: VALUE}  # large pages of memory
    return {
        (system, dtype): Worker(
            *("gpt_systems.py", f"{system}-{part}", as_train_py if (system, part) == ("ours", "train") else None),
            dtype=dtype,
            **common,
        )
        for system, dtype in itertools.product(o.systems, o.dtypes)
        if dtype != "int8" or (system, part) == ("ours", "generate")
    }


def rows_of(part: str, runs: dict[tuple[str, str], list[dict]], tokens: int, **more: Any) -> Iterator[dict[str, Any]]:
    """A row for each worker: median and range of tokens a second, and how many times the fastest of ours is as fast."""
    rates = {key: [tokens / run["seconds"] for run in answers] for key, answers in runs.items()}
    median = {key: statistics.median(of_key) for key, of_key in rates.items()}
    ours = max(rate for (system, _), rate in median.items() if system == "ours")
    for (system, dtype), rate in median.items():
        yield {
            **{"part": part, "system": system, "dtype": dtype, **more},
            "tokens_per_s": round(rate),
            "tokens_per_s_range": [round(min(rates[system, dtype])), round(max(rates[system, dtype]))],
            "ours_is_times": round(ours / rate, 2),
            "peak_mib": round(max(answer["peak_mib"] for answer in runs[system, dtype])),
        }


def generate(o: Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Greedy generation of a fixed number of new pieces from prompts of one length."""
    for batch in o.batches:
        workers = workers_of(o, "generate", folder, batch=batch, prompt=o.prompt, length=o.length)
        runs = take_turns(workers, 1, o.repeats)
        reference = runs["ours", o.dtypes[0]][0]["tokens"]
        for row in rows_of("generate", runs, batch * o.length, batch=batch, length=o.length):
            found = runs[row["system"], row["dtype"]][0]["tokens"]
            same = sum(one == other for one, other in zip(found, reference, strict=True))
            yield {**row, "agreement": f"{same / batch:.0%}"}
        for worker in workers.values():
            worker.close()


def train(o: Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Whole updates with AdamW and dropout on the same batch."""
    workers = workers_of(o, "train", folder, batch=o.rows_of_a_batch, length=o.context)
    runs = take_turns(workers, o.updates, o.repeats)
    tokens = o.rows_of_a_batch * o.context * o.updates
    yield from rows_of("train", runs, tokens, batch=o.rows_of_a_batch, length=o.context)
    for worker in workers.values():
        worker.close()


PARTS = {"generate": generate, "train": train}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/gpt.py", __doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="int8: our generation alone")
    parser.add_argument("--size", choices=["124m", "small"], help="default: 124m")
    parser.add_argument("--batches", nargs="+", type=int, help="prompts at a time (default: 1 32)")
    parser.add_argument("--prompt", type=int, default=16, help="pieces of a prompt (default 16)")
    parser.add_argument("--length", type=int, help="new pieces (default 64)")
    parser.add_argument("--rows-of-a-batch", type=int, default=4, help="training: rows of an update (default 4)")
    parser.add_argument("--context", type=int, help="training: pieces of a row (default 256)")
    parser.add_argument("--updates", type=int, help="updates of a timed run (default 2)")
    parser.add_argument("--repeats", type=int, help="timed runs (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each system")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a toy model and little work: a minute or two")
    parser.add_argument("--json", action="store_true", help="print one list of rows on standard output")
    parser.add_argument("--rows", help="rows are added to this file")
    o = parser.parse_args(arguments)
    full = {"size": "124m", "batches": [1, 32], "length": 64, "context": 256, "updates": 2, "repeats": 5}
    quick = {"size": "small", "batches": [1, 4], "length": 8, "context": 16, "updates": 1, "repeats": 1}
    for name, value in (quick if o.quick else full).items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if "ours" not in o.systems:
        o.systems = ["ours", *o.systems]
    if "huggingface" in o.systems:
        require(["torch", "transformers", "safetensors"])
    log(machine(("jax", "torch", "transformers")))
    parts = PARTS.values() if o.part == "all" else [PARTS[o.part]]
    with tempfile.TemporaryDirectory() as folder:
        Worker("gpt_systems.py", "weights", size=o.size, folder=folder, threads=o.threads).close()
        found = itertools.chain.from_iterable(part(o, folder) for part in parts)
        if o.rows:
            rows = Rows(o.rows)
            found = (rows.add({**row, "size": o.size, "seed": 0}) for row in found)
        done = show(found, COLUMNS, o.json)
    if o.json:
        print(json.dumps(done))


if __name__ == "__main__":
    run(main)
