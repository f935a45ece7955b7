"""Any frozen dataclass composed of sections: its fields by dotted names, as JSON, and checked by their types."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transformer.config.errors import UserError, shown

C = TypeVar("C")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, in declaration order."""
    flat = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        flat |= flatten(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def differences(old: C, new: C) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old value, new value) for each field that differs."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def read_json(text: str, where: str) -> dict[str, Any]:
    """A JSON object. `where` names the text in errors."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # of 6,000 digits, of 200,000 brackets
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: 'config' must be an object")
    return values


def build(kind: type[C], values: Any, where: str, prefix: str = "") -> C:
    """The config or section of this class with these values, as JSON gives them. `where` names them in errors.

    Fields left out take their defaults; an unknown one is a `UserError`. `prefix` stands before the names of fields.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: '{prefix.rstrip('.')}' must be an object")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where}: unknown field '{prefix}{unknown[0]}'; was it written by a newer version?")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value, where, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)


def check_fields(section: Any, kind: type, prefix: str = "") -> None:
    """Raise `UserError` for the first field whose value is not of its type, or beyond its bounds.

    `prefix` stands before the names of the fields of a section.
    """
    if not isinstance(section, kind):
        what = f"{type(section).__name__} {shown(section)}"
        raise UserError(f"{prefix.rstrip('.') or 'config'}: must be a {kind.__name__}, not {what}")
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(hint):
            check_fields(value, hint, f"{prefix}{name}.")
        elif broken := _broken(value, hint):
            raise UserError(f"{prefix}{name} = {shown(value)}: {broken}")


def _broken(value: Any, hint: Any) -> str | None:
    """What a value of this type must be, where it is not; an integer is also a float."""
    kind, kinds = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _broken(value, kinds[0]) or kinds[1].broken(value)
    if kind is Literal:
        return None if isinstance(value, str) and value in kinds else f"must be one of {', '.join(kinds)}"
    if kind in (UnionType, Union):
        broken = [_broken(value, one) for one in kinds]
        return None if None in broken else f"{broken[0]}, or None"
    if kind is tuple:
        kinds = kinds[:1] * len(value) if Ellipsis in kinds and isinstance(value, tuple) else kinds
        if not isinstance(value, tuple) or len(value) != len(kinds):
            return f"must be of type {_plain(hint)}"
        return next((broken for broken in map(_broken, value, kinds) if broken), None)
    if not isinstance(value, (int, float) if hint is float else hint) or (isinstance(value, bool) and hint is not bool):
        return f"must be of type {hint.__name__}"
    return None if not isinstance(value, float) or math.isfinite(value) else "must be a finite number"


def _plain(hint: Any) -> str:
    """A type hint as Python writes it, without bounds."""
    kinds = get_args(hint)
    if get_origin(hint) is Annotated:
        return _plain(kinds[0])
    if get_origin(hint) is tuple:
        return f"tuple[{', '.join('...' if kind is Ellipsis else _plain(kind) for kind in kinds)}]"
    return hint.__name__


Relations = Iterator[tuple[bool, str, str]]
"""Rules between the fields of a config or section: whether each holds, the name of a field, what that must be."""


def require(section: Any, prefix: str, relations: Relations) -> None:
    """Raise `UserError` for the first of the relations that does not hold.

    `prefix` stands before the names of the fields of a section.
    """
    for holds, name, rule in relations:
        if not holds:
            raise UserError(f"{prefix}{name} = {shown(flatten(section)[name])}: {rule}")
