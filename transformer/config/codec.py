"""Frozen dataclasses composed of sections: flatten them to dotted field names, read them from JSON, check types."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError, shown

C = TypeVar("C")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Map each dotted field name to its value, in declaration order."""
    flat = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        flat |= flatten(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def differences(old: C, new: C) -> dict[str, tuple[Any, Any]]:
    """Map the dotted name of each field that differs to (old value, new value)."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def read_json(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `UserError` if the text is not one; `where` names the text in the message."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of 6,000 digits, or 200,000 nested brackets
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: 'config' must be an object")
    return values


def build(kind: type[C], values: Any, where: str, prefix: str = "") -> C:
    """Build a config or section of class `kind` from parsed JSON.

    Missing fields take their defaults. Raises `UserError` for an unknown field. In messages, `where` names the text
    and `prefix` precedes the field names.
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
    """Raise `UserError` for the first field whose value has the wrong type or is out of bounds.

    `prefix` precedes the field names in the message, such as "model.".
    """
    if not isinstance(section, kind):
        what = f"{type(section).__name__} {shown(section)}"
        raise UserError(f"{prefix.rstrip('.') or 'config'}: must be a {kind.__name__}, not {what}")
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(hint):
            check_fields(value, hint, f"{prefix}{name}.")
        elif violation := _violation(value, hint):
            raise UserError(f"{prefix}{name} = {shown(value)}: {violation}")


def _violation(value: Any, hint: Any) -> str | None:
    """Return the rule that the value violates for this type hint, or None. An int is accepted as a float."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _violation(value, args[0]) or args[1].violation(value)
    if origin is Literal:
        return None if isinstance(value, str) and value in args else f"must be one of {', '.join(args)}"
    if origin in (UnionType, Union):
        violations = [_violation(value, one) for one in args]
        return None if None in violations else f"{violations[0]}, or None"
    if origin is tuple:
        args = args[:1] * len(value) if Ellipsis in args and isinstance(value, tuple) else args
        if not isinstance(value, tuple) or len(value) != len(args):
            comma = isinstance(value, str) and args[:1] == (str,)
            return f"must be of type {_type_name(hint)}{f', such as ({value!r},)' if comma else ''}"
        return next((violation for violation in map(_violation, value, args) if violation), None)
    if not isinstance(value, (int, float) if hint is float else hint) or (isinstance(value, bool) and hint is not bool):
        return f"must be of type {hint.__name__}"
    return None if not isinstance(value, float) or math.isfinite(value) else "must be a finite number"


def _type_name(hint: Any) -> str:
    """The type hint as Python source, without bounds."""
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        return _type_name(args[0])
    if get_origin(hint) is tuple:
        return f"tuple[{', '.join('...' if arg is Ellipsis else _type_name(arg) for arg in args)}]"
    return hint.__name__


Relations = Iterator[tuple[bool, str, str]]
"""Rules between fields of a config or section, as (whether the rule holds, field name, rule in words)."""


def require(section: Any, prefix: str, relations: Relations) -> None:
    """Raise `UserError` for the first relation that does not hold. `prefix` precedes the field name in the message."""
    for holds, name, rule in relations:
        if not holds:
            raise UserError(f"{prefix}{name} = {shown(flatten(section)[name])}: {rule}")
