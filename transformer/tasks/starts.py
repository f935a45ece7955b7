"""The model of a run that begins from another one (`train.init_from`), where the start decides its shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from transformer.checkpoint import Checkpoints
from transformer.config import ModelConfig, UserError, check

CHOSEN = ("dropout", "attention_dropout", "activation_dropout", "initializer", "attention_kernel", "dtype")
"""Fields of the model that a run chooses itself. All others are those of the start."""


def start_model(config: Any, workdir: str | None) -> ModelConfig | None:
    """The model of `train.init_from`; None if the run resumes, or begins from random parameters."""
    start = config.train.init_from
    if start is None or (workdir and Checkpoints(workdir).states()):
        return None
    return Checkpoints(start).read(None, lambda opened: opened.model.config)


def adopted(config: Any, there: ModelConfig, kept: Collection[str] = (), **fixed: Any) -> Any:
    """The config with the model of a start. `kept`: further fields that the run chooses itself. `fixed`: fields of the
    model with other values.

    Raises `UserError` if the config gives a field of the start's model another value.
    """
    default, ours = type(config).model, config.model
    free = {*CHOSEN, *kept, *fixed}
    different = {
        field.name: (getattr(there, field.name), getattr(ours, field.name))
        for field in dataclasses.fields(ModelConfig)
        if field.name not in free
        and getattr(ours, field.name) not in (getattr(there, field.name), getattr(default, field.name))
    }
    if different:
        listed = "; ".join(f"--model.{name} is {old!r} there, {new!r} here" for name, (old, new) in different.items())
        raise UserError(
            f"train.init_from = {config.train.init_from!r}: {listed}. Give the values there, or leave these options out"
        )
    values = {name: getattr(ours, name) for name in (*CHOSEN, *kept)} | fixed
    config = dataclasses.replace(config, model=dataclasses.replace(there, **values))
    check(config)
    return config


def stored_model(config: Any, stored: Any) -> ModelConfig:
    """The model of `config` for a run that resumes with the config `stored`: what the data and the start decided is
    taken from there."""
    default = type(config).model
    alike = {
        field.name: getattr(stored.model, field.name)
        for field in dataclasses.fields(ModelConfig)
        if field.name not in CHOSEN and getattr(config.model, field.name) == getattr(default, field.name)
    }
    return dataclasses.replace(config.model, **alike)
