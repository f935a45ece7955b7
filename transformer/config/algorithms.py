"""Config of a run that learns an algorithmic task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from .codec import Relations
from .documentation import documented
from .model import GPT2, ModelConfig
from .numbers import Count
from .sections import MeshConfig, TrainConfig

# The forms of each task: the fields of `InstancesConfig` that it has.
FORMS: dict[str, tuple[str, ...]] = {
    **{"count": ("symbols",), "mode": ("symbols",), "sort": ("symbols",), "copy": ("symbols", "repeated")},
    **{"parity": ("hints",), "addition": ("hints", "reverse"), "and": ()},
}


@documented
@dataclass(frozen=True)
class InstancesConfig:
    """Which algorithmic task is learnt, and at which lengths. Instances are drawn anew for each update."""

    algorithm: Literal["count", "mode", "sort", "copy", "parity", "addition", "and"] = "copy"
    """The task. 'and' has 20 bits always, five of which are always 1 in training; train.seed decides which."""
    symbols: Count | None = None
    """Number of different symbols: of count, sort and copy 200 by default, of mode 26."""
    repeated: bool = False
    """Copy: symbols may occur several times."""
    hints: bool = False
    """Addition: a hint before each digit names its place. Parity: the same, and the answer is a scratchpad that names
    each 1 and the parity so far."""
    reverse: bool = False
    """Addition: the last digit of the answer comes first."""
    shortest: Count = 1
    """Length of the shortest instances."""
    longest: Count = 50
    """Length of the longest instances in training."""
    tested: tuple[int, ...] = (100, 150)
    """Evaluation also takes the lengths beyond `longest` up to each of these, range by range."""
    batch_rows: Count = 64
    """Number of instances per update. It sets train.batch_tokens."""
    dev_instances: Count = 1_000
    """Number of instances of each range in the evaluations of training."""
    test_instances: Count = 2_000
    """Number of instances of each range in evaluate.py."""
    cache_dir: str | None = None
    """Local folder for compiled programs; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""

    @property
    def longest_tested(self) -> int:
        """The length of the longest instances of all."""
        return max((self.longest, *self.tested))


_MODEL = replace(GPT2, decoder_layers=2, d_model=64, d_ff=256, heads=1, dropout=0.0, attention_dropout=0.0)
_TRAINING = TrainConfig(
    steps=10_000,
    peak_learning_rate=1e-3,
    warmup_steps=1,
    schedule="linear",
    decay_steps=10_000,
    adam_b2=0.999,
    adam_eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
    label_smoothing=0.0,
    eval_every=500,
    checkpoint_every=500,
    stop_at=1.0,
)


@documented
@dataclass(frozen=True)
class AlgorithmConfig:
    """Config of a run of the task that learns an algorithm: a decoder alone continues a prompt with its answer."""

    model: ModelConfig = _MODEL
    data: InstancesConfig = field(default_factory=InstancesConfig)
    train: TrainConfig = _TRAINING
    mesh: MeshConfig = field(default_factory=MeshConfig)

    task = "algorithm"
    movable = ()
    """File names. There are none."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        m, d = self.model, self.data
        yield m.encoder_layers == 0, "model.encoder_layers", "must be 0: answers continue prompts, by a decoder alone"
        yield m.decoder_layers > 0, "model.decoder_layers", "must be at least 1: answers continue prompts, by a decoder"
        yield d.shortest <= d.longest, "data.shortest", f"must be at most data.longest ({d.longest})"
        ascending = all(a < b for a, b in zip((d.longest, *d.tested), d.tested, strict=False))
        yield ascending, "data.tested", f"must be ascending lengths beyond data.longest ({d.longest})"
        for name in ("symbols", "repeated", "hints", "reverse"):
            given = getattr(d, name) not in (None, False)
            yield (
                not given or name in FORMS[d.algorithm],
                f"data.{name}",
                f"is not for data.algorithm = {d.algorithm!r}",
            )
        parts = self.train.accumulate
        yield d.batch_rows % parts == 0, "data.batch_rows", f"must be a multiple of train.accumulate ({parts})"
        yield self.mesh.data != 0, "mesh.data", "must be -1 or at least 1"

    def may_become(self, other: AlgorithmConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        return name in ("data.dev_instances", "data.test_instances", "data.tested")
