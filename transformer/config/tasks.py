"""One config class for each task, composed of sections; which fields may change when a run goes on."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any

from transformer.config.codec import Relations, check_fields, differences, load_json, require
from transformer.config.model import ModelConfig, check_model
from transformer.config.sections import (
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    MeshConfig,
    TrainConfig,
    check_decode,
)


@dataclass(frozen=True)
class Config:
    """One run: what `configs/*.py` hold and `workdir/config.json` records."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


# Fields that may change when a run is resumed: none of them alters what an update computes.
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

# Files that may lie elsewhere then, as many as they were: what is in them is compared.
MOVABLE = (
    "data.source",
    "data.target",
    "data.dev_source",
    "data.dev_target",
    "data.test_source",
    "data.test_target",
    "data.tokenizer",
)


def resumable(name: str) -> bool:
    """Whether the field of this dotted name may differ from the workdir's when training goes on."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in RESUMABLE)


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Those of the differences with which a run of the one can't go on as the other."""

    def may_change(name: str, before: Any, after: Any) -> bool:
        if name == "data.languages":  # of one's own text they only say how it is scored
            return old.data.corpus == new.data.corpus == "text"
        if name in MOVABLE:
            return type(before) is type(after) and (isinstance(before, str) or len(before) == len(after))
        return resumable(name)

    return {name: values for name, values in differences(old, new).items() if not may_change(name, *values)}


def from_json(text: str, where: str = "config.json") -> Config:
    """The config that `to_json` wrote. Fields left out take their defaults; an unknown one is a `UserError`."""
    return load_json(Config, text, where)


def check(config: Config) -> None:
    """Raise `UserError` naming the first field that breaks a rule."""
    check_fields(config, Config)
    for relations in (_of_data, _of_training):
        require(config, "", relations(config))
    check_model(config.model)
    check_decode(config.decode)


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
