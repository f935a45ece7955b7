"""What training asks of a task: a model with its loss, batches, and scores that judge it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from transformer.config import Config
from transformer.judging import Judged
from transformer.model import Model, Params

Batch = dict[str, Array]
"""Arrays by name; all have the same rows."""

Shape = Mapping[str, tuple[int, int]]
"""The (rows, length) of each array of a batch, by its name: {"text": (32, 512)}."""


class Loss(Protocol):
    """The sum of the losses of a batch, and further sums by name.

    Of these "weight" is the number of terms in the sum, "nll" the sum without smoothing, and "tokens" the number of
    tokens that the model reads. Without a key there is no dropout. `mesh`: the devices over which the rows lie.
    """

    def __call__(
        self, params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None
    ) -> tuple[Array, dict[str, Array]]: ...


class Objective(NamedTuple):
    """What training minimises. It holds no data."""

    model: Model
    loss: Loss
    flops: Callable[[Shape], float]
    """Model FLOPs of one update on a batch of this shape, padding included."""


class Batches(Protocol):
    """An endless sequence of training batches with random access. Updates are counted from 0."""

    shapes: Sequence[Shape]
    """All shapes that occur."""
    batches_per_epoch: int

    def shape(self, step: int) -> Shape: ...

    def read(self, step: int, begin: int, end: int) -> dict[str, np.ndarray]:
        """Rows `begin` to `end` of the batch of an update; beyond its last row there is padding."""
        ...

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of an update and its place in it, both from 0."""
        ...

    def digest(self) -> str:
        """Hex digest of the order of all batches."""
        ...


class Task(Protocol):
    """What is trained: a config, an objective, batches, and an evaluation."""

    config: Config
    objective: Objective
    files: Mapping[str, bytes]
    """Saved with every checkpoint, by file name."""
    judged: Judged
    """The scores of `evaluate` that judge checkpoints, in the order of comparison."""

    def batches(self) -> Batches: ...

    def data_digest(self) -> str:
        """Hex digest of the training data: a run goes on with the same data only."""
        ...

    def content_digests(self) -> Mapping[str, str]:
        """Digests of all data by name: several processes must find the same."""
        ...

    def judged_on(self) -> Mapping[str, Any]:
        """What scores depend on besides the parameters: `dev_digest` and `scored_with` (see `judging`)."""
        ...

    def describe(self) -> Iterator[str]:
        """Lines about the data for the start of the log."""
        ...

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the development set, by name; nothing without a development set."""
        ...

    def sample(self, params: Params) -> None:
        """Log an output or two of the model, to show that it runs."""
        ...

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test sets into the workdir."""
        ...

    def lines(self, step: int) -> str:
        """Where the batch of an update comes from: files and line numbers, for people."""
        ...
