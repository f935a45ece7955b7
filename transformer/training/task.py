"""The interface of a task: a model with its loss, batches, and scores that judge checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from transformer.checkpoint import Checkpoint
from transformer.config import Config
from transformer.judging import Judged
from transformer.model import Model, Params

Batch = dict[str, Array]
"""Arrays by name; all have the same number of rows."""

Shape = Mapping[str, tuple[int, int]]
"""The (rows, length) of each array of a batch, by its name: {"text": (32, 512)}."""


class Loss(Protocol):
    """Returns the summed loss of a batch, in nats, and further sums by name.

    The further sums are "weight", the number of terms in the loss; "nll", the loss without smoothing; and "tokens",
    the number of tokens that the model reads. Without a key there is no dropout. `mesh`: the devices that rows are cut
    over.
    """

    def __call__(
        self, params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None
    ) -> tuple[Array, dict[str, Array]]: ...


class Objective(NamedTuple):
    """A model, the loss that training minimises, and which parameters it treats differently. It holds no data."""

    model: Model
    loss: Loss
    flops: Callable[[Shape], float]
    """Model FLOPs of one update on a batch of this shape, padding included."""
    rate: Callable[[str], float] | None = None
    """Factor of the learning rate of each parameter, by its path; 0 = it stays as it is. None = 1 for all."""
    redrawn: Callable[[str, Checkpoint], bool] | None = None
    """Whether a run that starts from a checkpoint draws the parameter with this path anew, although the checkpoint has
    it. None = no parameter."""
    init: Callable[[Array], Params] | None = None
    """Makes the initial parameters from a key; None = those of `model.init`."""


class Batches(Protocol):
    """An endless sequence of training batches with random access. Updates are counted from 0."""

    shapes: Sequence[Shape]
    """All shapes of the batches."""
    batches_per_epoch: int

    def shape(self, step: int) -> Shape: ...

    def read(self, step: int, begin: int, end: int) -> dict[str, np.ndarray]:
        """Rows `begin` to `end` of the batch of an update. Rows after its last one are padding."""
        ...

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of an update and its index in that epoch, both from 0."""
        ...

    def digest(self) -> str:
        """Hex digest of the order of all batches."""
        ...


class Task(Protocol):
    """A config, an objective, batches and an evaluation: all that `train` needs."""

    config: Config
    objective: Objective
    files: Mapping[str, bytes]
    """File name -> content; saved with every checkpoint."""
    judged: Judged
    """The scores of `evaluate` that judge checkpoints, in the order of comparison."""

    def batches(self) -> Batches: ...

    def data_digest(self) -> str:
        """Hex digest of the training data. A run resumes only with the same data."""
        ...

    def content_digests(self) -> Mapping[str, str]:
        """Digests of all data by name. They must be the same in all processes."""
        ...

    def judged_on(self) -> Mapping[str, Any]:
        """What the scores depend on besides the parameters: `scored_with`, and `dev_digest` (see `judging`) unless the
        development set is drawn from the seed."""
        ...

    def describe(self) -> Iterator[str]:
        """Lines that describe the data, for the start of the log."""
        ...

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """(name, score) pairs on the development set; none without a development set."""
        ...

    def sample(self, params: Params) -> None:
        """Log a few outputs of the model, to show that it runs."""
        ...

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test sets into the workdir."""
        ...

    def lines(self, step: int) -> str:
        """The files and line numbers that the batch of an update comes from, for messages."""
        ...


class RunnableTask(Task, Protocol):
    """A task that `train.py` and `evaluate.py` can run: what its class in `tasks.TASKS` has besides."""

    @staticmethod
    def check_cache(config: Any) -> None:
        """Raise `UserError` if the cache folder can't be written to. Called before JAX opens its own cache."""
        ...

    @staticmethod
    def check(config: Any, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading data."""
        ...

    @staticmethod
    def resumed(config: Any, stored: Any) -> Any:
        """The config of a run that resumes in a workdir with the config `stored`."""
        ...

    @classmethod
    def build(cls, config: Any, workdir: str | None = None) -> RunnableTask: ...

    def prepare(self) -> None:
        """Read and cache all data of a run. The processes call this one after the other."""
        ...

    def cut_into(self, micro_batches: int) -> RunnableTask:
        """The same task with another number of micro-batches."""
        ...

    @staticmethod
    def score(workdir: str, *, checkpoint: str | None = None) -> Mapping[str, Any]:
        """The scores of a checkpoint.

        Further keywords are the options of `evaluate.py` that the task takes, and `kind`, which may be 'dev': score the
        development set, even if there is a test set.
        """
        ...

    @staticmethod
    def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
        """The result of `score`, for people."""
        ...


T = TypeVar("T", bound=Task)


def with_data_of(read: T, task: T, names: Sequence[str]) -> T:
    """`task` with those cached properties of these names that `read` has: what they hold is not read again."""
    vars(task).update((name, value) for name, value in vars(read).items() if name in names)
    return task
