"""The parser's learning curve: F1 of the development trees after training on more and more trees.

    python benchmarks/parsing_curve.py --folder runs/parsing_curve --rows results/parsing.jsonl
    python benchmarks/parsing_curve.py --folder runs/parsing_curve --rows results/parsing.jsonl --plain

Each training is configs/parsing_craft.py on that number of trees, drawn at random, with the same number of updates. The
first 500 development trees are scored. Trainings with a row are left out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, log
from trainings import Training, complete_lines, rows_of

from transformer.command_line import Parser, run, whole

CONFIG = HERE.parent / "configs" / "parsing_craft.py"
TREES = (1_184, 2_369, 4_738, 9_475, 18_951)  # of 18,951: a 16th to all


def training(rows: Rows, folder: str, about: dict[str, Any]) -> Training:
    """The training that these columns of a row describe."""
    trees, updates, pieces, hard = (about[name] for name in ("trees", "updates", "pieces", "hard_attention"))
    fields = {
        "model.dtype": "bfloat16",
        "data.most_trees": trees,
        "data.vocab_size": pieces,
        "model.hard_attention": hard,
    }
    fields |= {f"train.{name}": updates for name in ("steps", "decay_steps", "eval_every")}
    fields["train.warmup_steps"] = max(1, updates // 10)
    options = ["--config", str(CONFIG), *(f"--{field}={value}" for field, value in fields.items())]
    name = f"{trees}_trees_{updates}_updates_{pieces}_pieces{'' if hard else '_plain'}"
    return Training(rows, Path(folder) / name, options, about)


def main(arguments: Sequence[str]) -> None:
    parser = Parser("benchmarks/parsing_curve.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--trees", nargs="+", type=whole(1), default=TREES, help="numbers of training trees")
    parser.add_argument("--updates", type=whole(1), default=2_000, help="of each training (default 2,000)")
    parser.add_argument("--pieces", type=whole(8), default=8_000, help="size of the vocabulary (default 8,000)")
    parser.add_argument("--plain", action="store_true", help="without hard attention")
    parser.add_argument("--jobs", type=whole(1), default=1, help="trainings at a time (default 1)")
    parser.add_argument("--folder", required=True, help="where the workdirs go; the same command goes on from them")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file")
    o = parser.parse_args(arguments)
    rows, there = Rows(o.rows), [row for row in complete_lines(Path(o.rows)) if "dev_f1" in row]
    shared = {"updates": o.updates, "pieces": o.pieces, "hard_attention": not o.plain, "seed": 0}
    wanted = [{"part": "learning curve", "trees": trees, **shared} for trees in o.trees]
    missing = [one for one in wanted if not any(one.items() <= row.items() for row in there)]
    with contextlib.closing(rows_of([training(rows, o.folder, one) for one in missing], o.jobs)) as reported:
        for row in reported:
            log("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    run(main)
