"""Rules about fields: what a model of another library can express, and what its config.json may hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformer.config import ModelConfig, check_model, flatten
from transformer.config.errors import UserError


def refuse_inexpressible(
    config: ModelConfig,
    library: str,
    to: str,
    any_value: Collection[str],
    needed: Mapping[str, Any],
    *,
    implied: Mapping[str, Any] | None = None,
    ignored: tuple[str, ...] = (),
) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value `library` can't express.

    Fields in `any_value` may have any value, and those whose names begin with one of `ignored` have no effect. Every
    other field must have its value in `needed`, or its default, or the value in `implied`, which means the same. `to`:
    the name of the export.
    """
    check_model(config)
    # A size that is given explicitly is the same as the default if the values are equal.
    size = config.d_model / config.heads
    same = {"kv_heads": config.heads, "kv_sharing": 1, "d_k": size, "d_v": size, **(implied or {})}
    expected = flatten(ModelConfig()) | needed
    for name, value in flatten(config).items():
        if name in any_value or name.startswith(ignored):
            continue
        if value not in (expected[name], same.get(name.split(".")[-1], expected[name])):
            raise UserError(
                f"model.{name} = {value!r}: {library} can't express it; {to} needs a model with "
                f"model.{name} = {expected[name]!r}"
            )


def wrong_values(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    """A message for each field of their config that has another value than in `fixed`, the only one that our model can
    express."""
    return [
        f"{name} = {given!r}: our model can't express it; it must be {value!r}"
        for name, value in fixed.items()
        if (given := values.get(name)) not in (value, None)
    ]


def wrong_counts(counts: Mapping[str, Any]) -> list[str]:
    """A message for each of these fields that is no whole number from 1 on."""
    return [f"{name} = {x!r}: must be a whole number, at least 1" for name, x in counts.items() if not is_count(x)]


def wrong_rates(rates: Mapping[str, Any]) -> list[str]:
    """A message for each of these dropout rates that is no number from 0 to 1."""
    return [f"{name} = {x!r}: must be from 0 to 1" for name, x in rates.items() if not is_number(x, 0, 1)]


def wrong_choice(name: str, value: Any, choices: Collection[str]) -> list[str]:
    """A message for a field that is none of these names."""
    known = isinstance(value, str) and value in choices
    return [] if known else [f"{name} = {value!r}: must be one of {', '.join(choices)}"]


def wrong_epsilon(name: str, value: Any) -> list[str]:
    """A message for a field that is no small number above 0."""
    return [] if is_number(value, 1e-30, 1) else [f"{name} = {value!r}: must be a number above 0"]


def checked(model: ModelConfig, where: object) -> ModelConfig:
    """The model. Raises `UserError` for a field that breaks a rule; `where` names their file."""
    try:
        check_model(model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return model


def is_count(x: Any) -> bool:
    return type(x) is int and x >= 1


def is_number(x: Any, least: float, most: float) -> bool:
    return type(x) in (int, float) and least <= x <= most
