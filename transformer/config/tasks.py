"""One config class for each task, composed of sections; which fields may change when a run goes on."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from dataclasses import dataclass, field
from typing import Any

from transformer.config.codec import C, Relations, build, check_fields, differences, read_json, require
from transformer.config.errors import UserError, shown
from transformer.config.model import ModelConfig, check_model
from transformer.config.sections import (
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    MeshConfig,
    TrainConfig,
    check_decode,
)

# Fields that may change when a run goes on: none of them alters what an update computes.
RESUMABLE = (
    "model.initializer",
    "train.steps",
    "train.*_every",
    "train.remat",
    "train.keep_last",
    "train.patience",
    "train.eval_sentences",
    "train.non_finite*",
    "decode.*",
    "evaluate.*",
    "mesh.*",
    "data.cache_dir",
    "data.workers",
    "data.tfds_dir",
)


@dataclass(frozen=True)
class Config:
    """A run of the translation task: what `configs/*.py` hold and `workdir/config.json` records."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    # Without annotations: of the class, no fields.
    task = "translation"
    movable = (
        *("data.source", "data.target", "data.dev_source", "data.dev_target", "data.test_source", "data.test_target"),
        "data.tokenizer",
    )
    """Names of files, which may lie elsewhere when a run goes on, as many as they were: their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        yield from _of_data(self)
        yield from _of_training(self)

    def may_become(self, other: Config, name: str) -> bool:
        """Whether a run may go on with the value that this field, which is not among the above, has in `other`."""
        # Of one's own text languages only say how it is scored.
        return name == "data.languages" and self.data.corpus == other.data.corpus == "text"


RUNS: dict[str, Any] = {kind.task: kind for kind in (Config,)}
"""The config class of each task, by the name of the task."""


def resumable(name: str) -> bool:
    """Whether the field of this dotted name may change when a run goes on, whatever its value."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in RESUMABLE)


def conflicts(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The differences between two configs with which a run of the one can't go on as the other."""
    if type(old) is not type(new):
        return {"task": (old.task, new.task)}

    def may_change(name: str, before: Any, after: Any) -> bool:
        if name == "model.vocab_size":  # which the checkpoints of earlier versions leave to the tokenizer
            return None in (before, after)
        if name in old.movable:
            return type(before) is type(after) and (isinstance(before, str) or len(before) == len(after))
        return resumable(name) or old.may_become(new, name)

    return {name: values for name, values in differences(old, new).items() if not may_change(name, *values)}


def to_json(config: Any) -> str:
    """The config as indented JSON, with the name of its task, readable by `from_json`."""
    return json.dumps({"task": config.task, **dataclasses.asdict(config)}, indent=2) + "\n"


def from_json(text: str, where: str = "config.json") -> Any:
    """The config that `to_json` wrote; without the name of a task, as earlier versions wrote it, that of a translation.

    Fields left out take their defaults; an unknown one is a `UserError`. `where` names the text in errors.
    """
    values = read_json(text, where)
    task = values.pop("task", Config.task)
    if not isinstance(task, str) or task not in RUNS:
        known = ", ".join(RUNS)
        raise UserError(f"{where}: task = {shown(task)}: must be one of {known}; was it written by a newer version?")
    return build(RUNS[task], values, where)


def check(config: Any) -> None:
    """Raise `UserError` naming the first field that breaks a rule."""
    check_fields(config, type(config) if type(config) in RUNS.values() else Config)
    require(config, "", config.relations())
    for name in (f.name for f in dataclasses.fields(config)):
        if (section := getattr(config, name)).__class__ in CHECKS:
            CHECKS[section.__class__](section)


def with_micro_batches(config: C, count: int) -> C:
    """The config with so many micro-batches, checked."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=count))
    check(config)
    return config


CHECKS = {ModelConfig: check_model, DecodeConfig: check_decode}
"""The rules between the fields of one section."""


def _of_data(config: Config) -> Relations:
    m, d, decode = config.model, config.data, config.decode
    if m.positions == "learned":
        longest = max(d.max_length + m.position_offset, decode.max_source_length + decode.max_extra_length + 1)
        yield (
            m.max_positions >= longest,
            "model.max_positions",
            f"must be at least {longest}, the longest sentence that data.max_length, model.position_offset and "
            "decode.max_source_length + decode.max_extra_length + 1 allow",
        )
    yield (
        d.corpus == "text" or d.languages is not None,
        "data.languages",
        f"must name source and target language for data.corpus = {d.corpus!r}, such as: en de",
    )
    yield not d.weights or len(d.weights) == len(d.source), "data.weights", "must be as many as data.source"
    yield d.fields[0] != d.fields[1], "data.fields", "must be two names, that of the source and that of the target"


def _of_training(config: Config) -> Relations:
    t, length = config.train, config.data.max_length
    yield (
        t.batch_tokens >= length * t.accumulate,
        "train.batch_tokens",
        f"must hold at least one sentence of data.max_length ({length}) pieces in each of its "
        f"{t.accumulate} micro-batches; raise it or lower data.max_length",
    )
    yield config.mesh.data != 0, "mesh.data", "must be -1 or at least 1"
