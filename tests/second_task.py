"""A second task: reverse rows of digits. Its score is the share of wrong digits: lower is better.

It needs only this file, a row in `config.RUNS` and a row in `tasks.TASKS`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from transformer.checkpoint import Checkpoints
from transformer.config import BOS, MeshConfig, ModelConfig, TrainConfig, with_micro_batches
from transformer.model import build
from transformer.training.objectives import sequences
from transformer.training.warm_start import check_start

FIRST, VOCABULARY = 4, 14  # the id of the digit 0; ten digits and the special ids


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    length: int = 4

    task = "reversal"
    movable = ()

    def relations(self) -> Iterator[tuple[bool, str, str]]:
        yield self.length > 1, "length", "must be at least 2"

    def may_become(self, other: "Config", name: str) -> bool:
        return False


def rows(seed: int, step: int, count: int, length: int) -> dict[str, np.ndarray]:
    digits = np.random.default_rng([seed, step]).integers(FIRST, VOCABULARY, (count, length), np.int32)
    return {"source": digits, "target": digits[:, ::-1]}


class Batches:
    batches_per_epoch = 100

    def __init__(self, config: Config):
        self.length, self.seed = config.length, config.train.seed
        self.rows = config.train.batch_tokens // config.length
        self.shapes = (self.shape(0),)

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(("source", "target"), (self.rows, self.length))

    def read(self, step: int, begin: int, end: int) -> dict[str, np.ndarray]:
        part = {name: x[begin:end] for name, x in rows(self.seed, step, self.rows, self.length).items()}
        return {name: np.pad(x, ((0, end - begin - len(x)), (0, 0))) for name, x in part.items()}

    def locate(self, step: int) -> tuple[int, int]:
        return divmod(step, self.batches_per_epoch)

    def digest(self) -> str:
        return f"{self.seed} {self.shapes}"


class Reversal:
    judged = (("dev_wrong", "down"),)

    def __init__(self, config: Config):
        self.config, self.files = config, {"digits.txt": b"0123456789"}
        self.objective = sequences(build(config.model.with_vocabulary(VOCABULARY)), config.train)
        self._logits = jax.jit(self.objective.model.apply)

    @classmethod
    def build(cls, config: Config, workdir: str | None = None) -> "Reversal":
        return cls(config)

    @staticmethod
    def check_cache(config: Config) -> None: ...

    @staticmethod
    def check(config: Config, workdir: str) -> None:
        check_start(config, workdir, build(config.model.with_vocabulary(VOCABULARY)))

    @staticmethod
    def resumed(config: Config, stored: Config) -> Config:
        return config

    def prepare(self) -> None: ...

    def cut_into(self, micro_batches: int) -> "Reversal":
        return Reversal(with_micro_batches(self.config, micro_batches))

    def batches(self) -> Batches:
        return Batches(self.config)

    def data_digest(self) -> str:
        return self.batches().digest()

    def content_digests(self) -> dict[str, str]:
        return {"digits": self.data_digest()}

    def judged_on(self) -> dict[str, Any]:
        return {"dev_digest": "digits", "scored_with": {"length": self.config.length}}

    def describe(self) -> Iterator[str]:
        yield f"data        rows of {self.config.length} digits"

    def evaluate(self, params: Any, mesh: Any, step: int) -> Iterator[tuple[str, float]]:
        yield "dev_wrong", self.wrong(params)

    def wrong(self, params: Any) -> float:
        """The share of wrong digits, each predicted after the right ones before it (teacher forcing)."""
        source, target = rows(10**6, 0, 64, self.config.length).values()
        before = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        return float(np.mean(np.argmax(self._logits(params, source, before), axis=-1) != target))

    def sample(self, params: Any) -> None: ...

    def write_sets(self, folder: Any) -> None: ...

    def lines(self, step: int) -> str:
        return f"digits {step}"

    @staticmethod
    def score(workdir: str, *, checkpoint: str | None = None) -> dict[str, Any]:
        opened = Checkpoints(workdir).open(checkpoint)
        return {"checkpoint": str(opened.name), "wrong": Reversal(opened.config).wrong(opened.params())}

    @staticmethod
    def lines_of(result: dict[str, Any]) -> Iterator[str]:
        yield f"{result['wrong']:.1%} wrong, checkpoint {result['checkpoint']}"
