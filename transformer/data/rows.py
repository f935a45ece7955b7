"""Training batches of rows of one length: each epoch has every row once, in random order.

The order is a pure function of (seed, epoch, step), so the step alone is enough to resume a run.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from transformer.config import UserError

Batch = dict[str, np.ndarray]
"""int32 arrays (rows, length), by name."""


class Rows(Protocol):
    """The rows of an epoch."""

    context: int
    """Number of pieces in a row, padding included."""
    count: int
    """Number of rows; the same in every epoch."""
    lengths: Mapping[str, int]
    """The length of each array of a batch, by its name."""
    used: int
    """Number of positions of all rows that are not padding."""

    def draw(self, rng: np.random.Generator) -> int:
        """Draw what distinguishes the rows of an epoch from those of another one."""
        ...

    def batch(self, rows: Sequence[int], drawn: int, count: int) -> Batch:
        """The arrays of these rows in an epoch for which `draw` gave `drawn`, and padding up to `count` rows."""
        ...

    def lines(self, rows: Sequence[int], drawn: int) -> str:
        """Files and line numbers (from 1) of the text in these rows: "a.txt:3-9,70; b.txt:1"."""
        ...

    def digest(self) -> str:
        """Hex digest of all that determines the rows, except the pieces."""
        ...


class Plan(NamedTuple):
    """The rows of an epoch in the order of its batches, and what `Rows.draw` gave."""

    order: np.ndarray
    drawn: int


class Batches:
    """An endless random-access sequence of training batches (see `training.task.Batches`), all of one shape.

    The rows of an epoch are spread evenly over its batches, so that the batches differ by at most one row of padding.
    """

    def __init__(self, rows: Rows, *, batch_tokens: int, accumulate: int = 1, seed: int):
        """A batch has at most `batch_tokens` positions; its number of rows is a multiple of `accumulate`. Raises
        `UserError` if no such number of rows fits."""
        self.rows, self._seed, context = rows, seed, rows.context
        size = batch_tokens // (context * accumulate) * accumulate
        if not size:
            raise UserError(
                f"train.batch_tokens = {batch_tokens}: too small for {accumulate} micro-batches of a row of "
                f"data.context = {context} pieces; raise it or lower data.context"
            )
        self._size = min(size, -(-rows.count // accumulate) * accumulate)
        self.batches_per_epoch = -(-rows.count // self._size)
        """Number of updates in an epoch; the same for every epoch."""
        self._starts = np.arange(self.batches_per_epoch + 1) * rows.count // self.batches_per_epoch
        self.shapes = ({name: (self._size, length) for name, length in rows.lengths.items()},)
        """The one shape of all batches."""
        self.padding = 1 - rows.used / (self.batches_per_epoch * self._size * context)
        """Share of padding among all positions of an epoch."""
        self._lock = threading.Lock()
        self._plans: dict[int, Plan] = {}

    def digest(self) -> str:
        """Hex sha256 of all that determines the batches, except the pieces."""
        described = f"{self._seed} {self.shapes} {self.batches_per_epoch} {self.rows.digest()}"
        return hashlib.sha256(described.encode()).hexdigest()

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of update `step`, and its index within the epoch; both count from 0."""
        return divmod(step, self.batches_per_epoch)

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each array in the batch of update `step`."""
        return self.shapes[0]

    def _plan(self, epoch: int) -> Plan:
        with self._lock:  # Grain's threads may need the same plan at the same time
            if epoch not in self._plans:
                rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
                plan = Plan(rng.permutation(self.rows.count), self.rows.draw(rng))
                self._plans = {e: p for e, p in self._plans.items() if e == max(self._plans)} | {epoch: plan}
            return self._plans[epoch]

    def _rows(self, step: int) -> tuple[list[int], int]:
        """The rows in the batch of update `step`, and what `Rows.draw` gave for its epoch."""
        epoch, index = self.locate(step)
        order, drawn = self._plan(epoch)
        return order[self._starts[index] : self._starts[index + 1]].tolist(), drawn

    def __getitem__(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return self.read(step, 0, self._size)

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of `batches[step]`, without reading the others. Rows beyond the last are padding."""
        rows, drawn = self._rows(step)
        return self.rows.batch(rows[begin:end], drawn, end - begin)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the text in the batch of update `step`: "a.txt:3-9,70; b.txt:1"."""
        return self.rows.lines(*self._rows(step))


def told(lines: Mapping[str, set[tuple[int, int]]]) -> str:
    """First and last lines of ranges, by file, as text: "a.txt:3-9,70; b.txt:1"."""
    return "; ".join(
        f"{file}:" + ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in sorted(ranges))
        for file, ranges in lines.items()
    )
