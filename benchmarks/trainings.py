"""Trainings by train.py, each in a process of its own, and rows of their evaluations as soon as they are there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rows import Rows
from side_by_side import HERE, environment

TRAIN = HERE.parent / "train.py"
COLUMNS = (
    *("step", "dev_loss", "dev_loss_exchanged", "dev_bleu", "dev_bleu_signature"),
    *("dev_f1", "dev_f1_all", "dev_tagging", "dev_errors"),
)
PAUSE = 0.5  # seconds between two looks at the logs


class Training:
    """One training in a workdir, and the rows of its evaluations.

    The workdir keeps the rows in a file `rows.jsonl`, so that no evaluation has a second row when the training goes on.
    """

    def __init__(self, rows: Rows, workdir: Path, options: Sequence[str], about: dict[str, Any]):
        """`rows`: what rows are added to. `options`: those of train.py. `about`: columns of each row."""
        self._rows, self._workdir, self._options, self._about = rows, workdir, options, about
        self._log, self._copy = workdir.parent / f"{workdir.name}.log", workdir / "rows.jsonl"
        self._reported: set[int] = set()  # steps
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the training, or go on with it."""
        self._reported = {row["step"] for row in self._rows.add_missing(self._copy)}
        self._workdir.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TRAIN), "--workdir", str(self._workdir), *self._options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=log)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """Rows of the evaluations that have none yet; each is added before it is given."""
        for entry in complete_lines(self._workdir / "metrics.jsonl"):
            if "dev_loss" in entry and entry["step"] not in self._reported:
                row = {**self._about, **{name: entry[name] for name in COLUMNS if name in entry}}
                self._reported.add(entry["step"])  # first: a signal in between adds no row twice
                self._rows.add(row, copy=self._copy)
                yield row

    def failure(self) -> Iterator[dict[str, Any]]:
        """A row that tells why the training broke off; none where it reached its end."""
        if code := self._process.returncode:
            said = self._log.read_text(errors="replace").strip().splitlines() or [f"ended with {code}"]
            row = {**self._about, "failed": said[-1]}
            self._rows.add(row)
            yield row

    def stop(self) -> None:
        """Ask the training to stop; it saves its state first."""
        if self.running:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


def complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines. Skips lines that are damaged, or still being written."""
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def rows_of(trainings: Sequence[Training], jobs: int) -> Iterator[dict[str, Any]]:
    """Run the trainings, `jobs` at a time. Rows: those of their evaluations and failures, as soon as they are there."""
    waiting, running = list(trainings), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start()
            for training in list(running):
                ended = not training.running  # asked first: what is logged before the end is read after it
                yield from training.evaluations()
                if ended:
                    yield from training.failure()
                    running.remove(training)
            time.sleep(PAUSE)
    finally:  # interrupted: no further training is begun
        for training in running:
            training.stop()
        for training in running:
            training.wait()
        for training in running:
            list(training.evaluations())  # those since the last look
