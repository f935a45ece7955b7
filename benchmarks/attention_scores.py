"""Dot product, unscaled dot product, additive attention, and values that are the keys: dev BLEU, and pieces a second.

    python benchmarks/attention_scores.py train --rows results/attention_scores.jsonl --folder runs/scores
    python benchmarks/attention_scores.py speed --rows results/attention_scores.jsonl    # on an idle machine

The model and the text are those of configs/multi30k_en_de.py; docs/additive_attention.md tells what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, log
from trainings import Training, rows_of

from transformer.command_line import Parser, config_file, run

CONFIG = HERE.parent / "configs" / "multi30k_en_de.py"
KINDS = {
    "dot": {},
    "unscaled": {"attention_score": "unscaled"},
    "additive": {"attention_score": "additive"},
    "keys": {"values": "keys"},
}
"""The options of the model for each kind of attention."""


def train(o: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows: the evaluations of each training, as soon as they are there."""

    def training(kind: str, heads: int, seed: int) -> Training:
        fields = {f"model.{name}": value for name, value in (KINDS[kind] | {"heads": heads}).items()}
        fields |= {"train.seed": seed, "train.steps": o.updates, "train.eval_every": o.updates // 3}
        options = ["--config", str(CONFIG), *(f"--{name}={value}" for name, value in fields.items())]
        about = {"part": "train", "kind": kind, "heads": heads, "seed": seed}
        return Training(rows, Path(o.folder) / f"{kind}-{heads}-{seed}", options, about)

    trainings = [training(*one) for one in itertools.product(o.kinds, o.heads, o.seeds)]
    yield from rows_of(trainings, o.jobs)


def speed(o: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows: target pieces a second of whole updates on the same batches, the kinds in turns."""
    import updates

    from transformer.model import build
    from transformer.tasks.translation import Translation
    from transformer.training.objectives import sequences

    config = config_file(str(CONFIG))
    task = Translation.build(config)
    batches = task.batches()
    some = [batches[step] for step in range(8)]
    pieces = sum(int((batch["target"] != 0).sum()) for batch in some)
    for heads in o.heads:
        systems = {}
        for kind in o.kinds:
            model = dataclasses.replace(task.config.model, heads=heads, **KINDS[kind])
            objective = sequences(build(model), config.train, packing=config.data.packing)
            systems[kind] = updates.ours(objective, config.train, some)
        found: dict[str, list[float]] = {kind: [] for kind in systems}
        for _ in range(o.turns):
            for kind, work in systems.items():
                found[kind].append(pieces / work(1)["seconds"])
        for kind, rates in found.items():
            spread = [round(min(rates)), round(max(rates))]
            rate = round(statistics.median(rates))
            yield rows.add(
                {"part": "speed", "kind": kind, "heads": heads, "tokens_per_s": rate, "tokens_per_s_range": spread}
            )


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/attention_scores.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["train", "speed"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--heads", nargs="+", type=int, default=[4], help="numbers of heads (default 4)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="train: seeds (default 0)")
    parser.add_argument("--updates", type=int, default=1_500, help="train: updates of a training (default 1,500)")
    parser.add_argument("--jobs", type=int, default=1, help="train: trainings at a time (default 1)")
    parser.add_argument("--turns", type=int, default=5, help="speed: measurements of each kind (default 5)")
    parser.add_argument("--folder", default="runs/attention_scores", help="train: workdirs; again: goes on from them")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file")
    o = parser.parse_args(arguments)
    with contextlib.closing({"train": train, "speed": speed}[o.part](o, Rows(o.rows))) as rows:
        for row in rows:
            log("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    run(main)
