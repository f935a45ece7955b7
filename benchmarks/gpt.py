"""Speed of our language model beside Hugging Face's GPT-2, with the same random weights: generation and training.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpt.py                    # 124M parameters; a quarter of an hour on two cores
    python benchmarks/gpt.py --part train
    python benchmarks/gpt.py --quick            # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from beside_huggingface import add_options, measure, parsed, rows_of, workers_of
from side_by_side import take_turns

from transformer.command_line import Parser, run

SCRIPT = "gpt_systems.py"
COLUMNS = {
    **{"part": -8, "system": -11, "dtype": -8, "batch": 5, "length": 6, "tokens_per_s": 12, "tokens_per_s_range": 18},
    **{"ours_is_times": 13, "agreement": 9, "peak_mib": 8},
}
DTYPES = ("float32", "bfloat16", "int8")
"""int8 is for our generation alone."""


def generate(o: Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Greedy generation of a fixed number of new pieces from prompts of one length."""
    for batch in o.batches:
        workers = workers_of(o, SCRIPT, "generate", folder, batch=batch, prompt=o.prompt, length=o.length)
        runs = take_turns(workers, 1, o.repeats)
        reference = runs["ours", o.dtypes[0]][0]["tokens"]
        for row in rows_of("generate", runs, batch * o.length, "tokens", batch=batch, length=o.length):
            found = runs[row["system"], row["dtype"]][0]["tokens"]
            same = sum(one == other for one, other in zip(found, reference, strict=True))
            yield {**row, "agreement": f"{same / batch:.0%}"}
        for worker in workers.values():
            worker.close()


def train(o: Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Whole updates with AdamW and dropout on the same batch."""
    workers = workers_of(o, SCRIPT, "train", folder, batch=o.rows_of_a_batch, length=o.context)
    runs = take_turns(workers, o.updates, o.repeats)
    tokens = o.rows_of_a_batch * o.context * o.updates
    yield from rows_of("train", runs, tokens, "tokens", batch=o.rows_of_a_batch, length=o.context)
    for worker in workers.values():
        worker.close()


PARTS = {"generate": generate, "train": train}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/gpt.py", __doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--size", choices=["124m", "small"], help="default: 124m")
    parser.add_argument("--batches", nargs="+", type=int, help="prompts at a time (default: 1 32)")
    parser.add_argument("--prompt", type=int, default=16, help="pieces of a prompt (default 16)")
    parser.add_argument("--length", type=int, help="new pieces (default 64)")
    parser.add_argument("--rows-of-a-batch", type=int, default=4, help="training: rows of an update (default 4)")
    parser.add_argument("--context", type=int, help="training: pieces of a row (default 256)")
    parser.add_argument("--updates", type=int, help="updates of a timed run (default 2)")
    add_options(parser, DTYPES)
    full = {"size": "124m", "batches": [1, 32], "length": 64, "context": 256, "updates": 2, "repeats": 5}
    quick = {"size": "small", "batches": [1, 4], "length": 8, "context": 16, "updates": 1, "repeats": 1}
    o = parsed(parser, arguments, full, quick)
    measure(o, SCRIPT, list(PARTS.values()) if o.part == "all" else [PARTS[o.part]], COLUMNS)


if __name__ == "__main__":
    run(main)
