"""Speed of fine-tuning: ours beside Hugging Face's BertForSequenceClassification, with the same random weights.

    pip install -r benchmarks/requirements.txt
    python benchmarks/finetune.py                    # the shape of all-minilm-l6-v2; five minutes on two cores
    python benchmarks/finetune.py --dtypes bfloat16
    python benchmarks/finetune.py --quick            # a toy, for a smoke test

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
from transformer.config import UserError

SCRIPT = "finetune_systems.py"
COLUMNS = {
    **{"part": -8, "system": -11, "dtype": -8, "batch": 5, "texts_per_s": 11, "texts_per_s_range": 17},
    **{"ours_is_times": 13, "loss": 8, "peak_mib": 8},
}
DTYPES = ("float32", "bfloat16")
LENGTHS = [8, 8, 8, 8, 12, 12, 20, 20, 28, 40]
"""Lengths of ten batches, in the proportions in which batches of SST-2 have them."""
NEAR = {"float32": 1e-4, "bfloat16": 0.02}
"""How far the first loss of a system may be from that of ours in float32."""


def train(o: Namespace, folder: str) -> Iterator[dict[str, Any]]:
    """Whole updates with AdamW and dropout on batches of several lengths."""
    workers = workers_of(o, SCRIPT, "train", folder, batch=o.rows_of_a_batch, lengths=o.lengths)
    losses = {key: worker.ready["loss"] for key, worker in workers.items()}
    reference = losses["ours", o.dtypes[0]]
    for (system, dtype), loss in losses.items():
        if not abs(loss - reference) <= max(NEAR[dtype], NEAR[o.dtypes[0]]):
            raise UserError(f"{system} in {dtype} has the loss {loss} where ours has {reference}: another model")
    runs = take_turns(workers, o.rounds, o.repeats)
    texts = o.rows_of_a_batch * len(o.lengths) * o.rounds
    for row in rows_of("train", runs, texts, "texts", batch=o.rows_of_a_batch, lengths=o.lengths):
        yield {**row, "loss": round(losses[row["system"], row["dtype"]], 5)}
    for worker in workers.values():
        worker.close()


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/finetune.py", __doc__.splitlines()[0])
    parser.add_argument("--size", choices=["minilm", "small"], help="default: minilm")
    parser.add_argument("--rows-of-a-batch", type=int, default=32, help="texts of an update (default 32)")
    parser.add_argument("--lengths", nargs="+", type=int, help="pieces of each batch (default: ten, as of SST-2)")
    parser.add_argument("--rounds", type=int, default=1, help="updates on each batch in a timed run (default 1)")
    add_options(parser, DTYPES)
    full = {"size": "minilm", "lengths": LENGTHS, "repeats": 5}
    quick = {"size": "small", "lengths": [8, 12], "repeats": 1}
    measure(parsed(parser, arguments, full, quick), SCRIPT, [train], COLUMNS)


if __name__ == "__main__":
    run(main)
