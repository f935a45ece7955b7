"""The parser's learning curve: F1 of the development trees after training on more and more trees.

    python benchmarks/parsing_curve.py --folder runs/parsing_curve --rows results/parsing.jsonl

Each training is configs/parsing_craft.py on so many trees, drawn at random, with the same number of updates; scored are
the first 500 development trees. Trainings with a row are left out. Other options are those of train.py.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, log
from trainings import Training, rows_of

from transformer.command_line import Parser, run, whole

CONFIG = HERE.parent / "configs" / "parsing_craft.py"
FIXED = {"model.dtype": "bfloat16", "model.dropout": 0.1, "model.attention_dropout": 0.1}
TREES = (1_184, 2_369, 4_738, 9_475, 18_951)  # of 18,951: a 16th to all


def training(rows: Rows, folder: str, trees: int, updates: int, more: Sequence[str]) -> Training:
    """The training on so many trees."""
    fields = {**FIXED, "data.most_trees": trees}
    fields |= {f"train.{name}": updates for name in ("steps", "decay_steps", "eval_every", "checkpoint_every")}
    fields["train.warmup_steps"] = max(1, updates // 10)
    options = ["--config", str(CONFIG), *(f"--{field}={value}" for field, value in fields.items()), *more]
    return Training(rows, Path(folder) / str(trees), options, {"part": "learning curve", "trees": trees, "seed": 0})


def found(path: str) -> set[tuple[int, int]]:
    """Trees and updates of the trainings in a file of rows."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else ()
    rows = [row for row in map(json.loads, lines) if row.get("part") == "learning curve" and "dev_f1" in row]
    return {(row["trees"], row["step"]) for row in rows}


def main(arguments: Sequence[str]) -> None:
    parser = Parser("benchmarks/parsing_curve.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--trees", nargs="+", type=whole(1), default=TREES, help="numbers of training trees")
    parser.add_argument("--updates", type=whole(1), default=2_000, help="of each training (default 2,000)")
    parser.add_argument("--jobs", type=whole(1), default=1, help="trainings at a time (default 1)")
    parser.add_argument("--folder", required=True, help="where the workdirs go; the same command goes on from them")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file")
    o, more = parser.parse_known_args(arguments)
    rows, there = Rows(o.rows), found(o.rows)
    missing = [training(rows, o.folder, n, o.updates, more) for n in o.trees if (n, o.updates) not in there]
    with contextlib.closing(rows_of(missing, o.jobs)) as reported:
        for row in reported:
            log("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    run(main)
