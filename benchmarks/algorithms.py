"""Train the algorithmic tasks, and add a row for each seed: exact match at the lengths of training and beyond.

    python benchmarks/algorithms.py --folder runs/algorithms --rows results/algorithms.jsonl
    python benchmarks/algorithms.py --only sort copy --folder runs/algorithms --rows results/algorithms.jsonl

Each task has a workdir in the folder. Runs that were stopped go on; runs that have a row are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, environment, log

from transformer.checkpoint import Checkpoints
from transformer.command_line import Parser, run, whole
from transformer.config import UserError


class Run(NamedTuple):
    """A task: its config in configs/algorithms/, other options of train.py, and the number of seeds."""

    config: str
    options: str = ""
    seeds: int = 3

    @property
    def arguments(self) -> list[str]:
        """The arguments of train.py, but for seed and workdir."""
        return ["--config", f"configs/algorithms/{self.config}.py", *self.options.split()]


SMALL_MODE = "--data.symbols 2 --model.heads 1 --model.d_model 16 --model.d_ff 64 --train.steps 2000"
RUNS = {
    "and": Run("and", "--train.steps 400 --train.eval_every 400", seeds=5),
    "binary mode": Run("mode", f"{SMALL_MODE} --train.decay_steps 2000"),
    "count": Run("count"),
    "mode": Run("mode"),
    "sort": Run("sort"),
    "copy": Run("copy"),
    "copy, repeated": Run("copy", "--data.repeated True --data.symbols 2", seeds=1),
    "parity": Run("parity", "--data.hints False", seeds=1),
    "parity, scratchpad": Run("parity"),
    "addition": Run("addition", "--data.hints False --data.reverse False", seeds=1),
    "addition, hints": Run("addition", "--data.reverse False"),
    "addition, hints, reversed": Run("addition"),
}


def command(script: str, *arguments: str) -> str:
    """Run a program of the project, and return what it prints. Raises `UserError` if it fails."""
    path = HERE.parent / script
    done = subprocess.run(
        [sys.executable, str(path), *arguments], cwd=HERE.parent, env=environment(), stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise UserError(f"{script} {' '.join(arguments)} ended with {done.returncode} (see above)")
    return done.stdout


def trained(name: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Train a task with a seed, or go on, and return its row: how often whole answers are right."""
    arguments = [*RUNS[name].arguments, "--train.seed", str(seed)]
    command("train.py", *arguments, "--workdir", str(workdir))
    result = json.loads(command("evaluate.py", "--workdir", str(workdir), "--json"))
    by_length = {int(length): share for length, share in result.pop("exact_match_by_length", {}).items()}
    updates = Checkpoints(workdir).read("last", lambda opened: opened.progress["step"])
    row = {"part": name, "options": " ".join(arguments), "seed": seed, "updates": updates, **result}
    return {**row, "lengths": grouped(by_length)} if by_length else row


def grouped(by_length: dict[int, float]) -> list[tuple[float, float]]:
    """For each five lengths, the one in the middle and the mean of their scores."""
    fives: dict[int, list[int]] = {}
    for length in by_length:
        fives.setdefault((length - 1) // 5, []).append(length)
    return [(fmean(some), round(fmean(by_length[length] for length in some), 4)) for some in fives.values()]


def missing(rows: Path, only: list[str]) -> Iterator[tuple[str, int]]:
    """The tasks and seeds that have no row yet."""
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    found = {(row["part"], row["seed"]) for row in map(json.loads, lines)}
    for name in only:
        yield from ((name, seed) for seed in range(RUNS[name].seeds) if (name, seed) not in found)


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/algorithms.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", required=True, help="where the workdirs go")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), help="which tasks (default: all)")
    parser.add_argument(
        "--seeds", type=whole(1), help="at most this many seeds of each (default: each task has its own)"
    )
    o = parser.parse_args(arguments)
    rows = Rows(o.rows)
    for name, seed in missing(Path(o.rows), o.only):
        if o.seeds is None or seed < o.seeds:
            workdir = Path(o.folder).absolute() / name.replace(", ", "_").replace(" ", "_") / f"seed-{seed}"
            row = rows.add(trained(name, seed, workdir))
            log(f"{name}, seed {seed}: {row['updates']} updates, {row['exact_match']}")


if __name__ == "__main__":
    run(main)
