"""The paper's Table 3 in miniature: its variations of the base model on Multi30k, beside its differences of BLEU.

    python benchmarks/table3.py train --rows results/table3.jsonl --folder runs/table3     # 43 trainings
    python benchmarks/table3.py table --rows results/table3.jsonl                           # Markdown

The base model here is that of configs/multi30k_en_de.py with a d_ff of 512, after 1,000 updates. Each variation changes
the same field as the paper's, by the same factor where the size allows it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, log
from trainings import Training, rows_of

from transformer.command_line import Parser, run, whole

CONFIG = HERE.parent / "configs" / "multi30k_en_de.py"
BASE = {"model.d_ff": 512}


class Variation(NamedTuple):
    """A row of the table."""

    group: str
    """The letter of the paper's group of rows."""
    paper: str
    """What the paper changes."""
    bleu: float
    """The paper's dev BLEU; the base model has 25.8."""
    changes: dict[str, Any]
    """What is changed here."""


VARIATIONS = {
    "base": Variation("", "base", 25.8, {}),
    "heads 1": Variation("A", "h 1 instead of 8, d_k 512", 24.9, {"model.heads": 1}),
    "heads 2": Variation("A", "h 4, d_k 128", 25.5, {"model.heads": 2}),
    "heads 8": Variation("A", "h 16, d_k 32", 25.8, {"model.heads": 8}),
    "heads 16": Variation("A", "h 32, d_k 16", 25.4, {"model.heads": 16}),
    "d_k 8": Variation("B", "d_k 16 instead of 64", 25.1, {"model.d_k": 8}),
    "d_k 16": Variation("B", "d_k 32", 25.4, {"model.d_k": 16}),
    "layers 1": Variation("C", "N 2 instead of 6", 23.7, {"model.encoder_layers": 1, "model.decoder_layers": 1}),
    "layers 3": Variation("C", "N 4", 25.3, {"model.encoder_layers": 3, "model.decoder_layers": 3}),
    "layers 5": Variation("C", "N 8", 25.5, {"model.encoder_layers": 5, "model.decoder_layers": 5}),
    "d_model 64": Variation("C", "d_model 256 instead of 512, d_k 32", 24.5, {"model.d_model": 64}),
    "d_model 256": Variation("C", "d_model 1024, d_k 128", 26.0, {"model.d_model": 256}),
    "d_ff 256": Variation("C", "d_ff 1024 instead of 2048", 25.4, {"model.d_ff": 256}),
    "d_ff 1024": Variation("C", "d_ff 4096", 26.2, {"model.d_ff": 1_024}),
    "dropout 0": Variation("D", "dropout 0 instead of 0.1", 24.6, {"model.dropout": 0.0}),
    "dropout 0.4": Variation("D", "dropout 0.2", 25.5, {"model.dropout": 0.4}),
    "smoothing 0": Variation("D", "label smoothing 0 instead of 0.1", 25.3, {"train.label_smoothing": 0.0}),
    "smoothing 0.2": Variation("D", "label smoothing 0.2", 25.7, {"train.label_smoothing": 0.2}),
    "learned": Variation("E", "learned positions", 25.7, {"model.positions": "learned", "model.max_positions": 1_100}),
    "big": Variation(
        "",
        "big: d_model 1024, d_ff 4096, h 16, dropout 0.3",
        26.4,
        {"model.d_model": 256, "model.d_ff": 1_024, "model.heads": 8, "model.dropout": 0.3},
    ),
}


def train(o: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows: the evaluations of each training, as soon as they are there. Trainings with a row are left out."""

    def training(name: str, seed: int) -> Training:
        fields = BASE | VARIATIONS[name].changes | {"train.seed": seed, "train.steps": o.updates}
        fields |= {"train.eval_every": o.updates, "train.checkpoint_every": o.updates}
        options = ["--config", str(CONFIG), *(f"--{field}={value}" for field, value in fields.items())]
        about = {"part": "table3", "variation": name, "seed": seed}
        return Training(rows, Path(o.folder) / f"{name.replace(' ', '_')}-{seed}", options, about)

    found = {(row["variation"], row["seed"]) for row in read(o.rows)}
    wanted = [(name, seed) for name in o.only for seed in range(o.base_seeds if name == "base" else o.seeds)]
    yield from rows_of([training(*one) for one in wanted if one not in found], o.jobs)


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
    return [row for row in map(json.loads, lines) if "dev_bleu" in row]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: for each variation its difference to the base model, here and in the paper."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["variation"], []).append(row["dev_bleu"])
    base = found.get("base", [])
    noise = statistics.stdev(base) if len(base) > 1 else float("nan")
    yield "| | here | in the paper | dev BLEU here | difference here | difference in the paper |"
    yield "|---|---|---|---|---|---|"
    for name, of in VARIATIONS.items():
        if scores := found.get(name):
            mean, paper = statistics.fmean(scores), of.bleu - VARIATIONS["base"].bleu
            difference = "" if name == "base" else f"{mean - statistics.fmean(base):+.2f}" if base else "?"
            each = ", ".join(f"{score:.2f}" for score in scores)
            yield f"| {of.group} | {name} | {of.paper} | {mean:.2f} ({each}) | {difference} | {paper:+.1f} |"
    yield f"\nThe standard deviation of the base model's {len(base)} seeds is {noise:.2f}."


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/table3.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["train", "table"])
    parser.add_argument("--only", nargs="+", choices=VARIATIONS, default=list(VARIATIONS))
    parser.add_argument("--seeds", type=whole(1), default=2, help="of each variation (default 2)")
    parser.add_argument("--base-seeds", type=whole(1), default=5, help="of the base model (default 5)")
    parser.add_argument("--updates", type=whole(1), default=1_000, help="of each training (default 1,000)")
    parser.add_argument("--jobs", type=whole(1), default=1, help="trainings at a time (default 1)")
    parser.add_argument("--folder", default="runs/table3", help="workdirs; the same command goes on from them")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file, or read from it")
    o = parser.parse_args(arguments)
    if o.part == "table":
        print("\n".join(table(read(o.rows))))
        return
    with contextlib.closing(train(o, Rows(o.rows))) as rows:
        for row in rows:
            log("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    run(main)
