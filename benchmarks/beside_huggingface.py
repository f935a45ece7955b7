"""What gpt.py and finetune.py share: ours beside Hugging Face's in PyTorch, with the same random weights."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rows import Rows
from side_by_side import Worker, log, machine, require, show

from transformer.command_line import Parser
from transformer.command_line.huge_pages import VALUE, VARIABLE

SYSTEMS = ("ours", "huggingface")
Key = tuple[str, str]
"""A system and its type."""


def add_options(parser: Parser, dtypes: Sequence[str]) -> None:
    """The options that both benchmarks have; each adds `--size`, whose default `parsed` is given."""
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=list(dtypes))
    parser.add_argument("--repeats", type=int, help="timed runs (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each system")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a toy model and little work: a minute or two")
    parser.add_argument("--json", action="store_true", help="print one list of rows on standard output")
    parser.add_argument("--rows", help="rows are added to this file")


def parsed(parser: Parser, arguments: list[str], full: Mapping[str, Any], quick: Mapping[str, Any]) -> Namespace:
    """The options, with the defaults of a full run or of `--quick`. Raises `UserError` if a package is missing."""
    o = parser.parse_args(arguments)
    for name, value in (quick if o.quick else full).items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if "ours" not in o.systems:
        o.systems = ["ours", *o.systems]
    if "huggingface" in o.systems:
        require(["torch", "transformers", "safetensors"])
    return o


def workers_of(o: Namespace, script: str, part: str, folder: str, **settings: Any) -> dict[Key, Worker]:
    """A worker for each system and type. int8 is for our generation alone."""
    common = {"threads": o.threads, "device": o.device, "size": o.size, "folder": folder, **settings}
    as_train_py = {VARIABLE: VALUE}  # large pages of memory
    return {
        (system, dtype): Worker(
            *(script, f"{system}-{part}", as_train_py if (system, part) == ("ours", "train") else None),
            dtype=dtype,
            **common,
        )
        for system, dtype in itertools.product(o.systems, o.dtypes)
        if dtype != "int8" or (system, part) == ("ours", "generate")
    }


def rows_of(part: str, runs: dict[Key, list[dict]], amount: int, unit: str, **more: Any) -> Iterator[dict[str, Any]]:
    """A row for each worker: median and range of the amount a second, and how many times the fastest of ours is as
    fast. `unit`: what is counted, such as "tokens"."""
    rates = {key: [amount / run["seconds"] for run in answers] for key, answers in runs.items()}
    median = {key: statistics.median(of_key) for key, of_key in rates.items()}
    ours = max(rate for (system, _), rate in median.items() if system == "ours")
    for (system, dtype), rate in median.items():
        yield {
            **{"part": part, "system": system, "dtype": dtype, **more},
            f"{unit}_per_s": round(rate),
            f"{unit}_per_s_range": [round(min(rates[system, dtype])), round(max(rates[system, dtype]))],
            "ours_is_times": round(ours / rate, 2),
            "peak_mib": round(max(answer["peak_mib"] for answer in runs[system, dtype])),
        }


def measure(
    o: Namespace, script: str, parts: Sequence[Callable[..., Iterator[dict[str, Any]]]], columns: Mapping[str, int]
) -> None:
    """Run each part with a folder of random weights that the worker `weights` writes; print the rows."""
    log(machine(("jax", "torch", "transformers")))
    with tempfile.TemporaryDirectory() as folder:
        Worker(script, "weights", size=o.size, folder=folder, threads=o.threads).close()
        found = itertools.chain.from_iterable(part(o, folder) for part in parts)
        if o.rows:
            rows = Rows(o.rows)
            found = (rows.add({**row, "size": o.size, "seed": 0}) for row in found)
        done = show(found, columns, o.json)
    if o.json:
        print(json.dumps(done))
