"""Fields of any dataclass composed of sections, replaced by `--dotted.name value` arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from transformer.config import UserError, flatten

C = TypeVar("C")


def override(default: C, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> C:
    """`default` with its fields replaced by `--dotted.name value` arguments; --help names them all.

    Values of a list that is given several times add up. Raises `UserError` on any other field that is given twice, on
    an unknown name, with the nearest known ones (of the program's other `options`, too), or on a value of the wrong
    type.
    """
    fields = flatten(default)
    known = [*fields, *options]
    groups = _groups(arguments)
    first: dict[str, list[str]] = {}
    more: list[tuple[str, list[str]]] = []
    for name, group in groups:
        if name and name not in fields and name != "help":
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [
                k for k in known if k.split(".")[-1] == name.split(".")[-1]
            ]
            hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else "--help names every option"
            raise UserError(f"unknown option {group[0].split('=')[0]}; {hint}")
        if first.setdefault(name, group) is not group:
            if not _is_list(type(default), name):
                raise UserError(f"--{name} is given twice; leave one of the two out")
            more.append((name, group))
    config = _parsed(default, [argument for group in first.values() for argument in group], program)
    for name, group in more:
        added = flatten(_parsed(default, group, program))[name]
        config = _replaced(config, name, (*flatten(config)[name], *added))
    return config


def _groups(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option by its name, with underscores, and its arguments as they were given; what comes before all of them by
    the name ""."""
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            groups.append((argument[2:].split("=")[0].replace("-", "_"), [argument]))
        elif groups:
            groups[-1][1].append(argument)
        else:
            groups.append(("", [argument]))
    return groups


def _is_list(kind: Any, name: str) -> bool:
    """Whether the field of this dotted name holds a tuple of any length."""
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return Ellipsis in get_args(kind)


def _replaced(config: C, name: str, value: Any) -> C:
    """A config with another value of the field of this dotted name."""
    section, _, rest = name.partition(".")
    value = _replaced(getattr(config, section), rest, value) if rest else value
    return dataclasses.replace(config, **{section: value})


def _parsed(default: C, arguments: Sequence[str], program: str) -> C:
    """`default` with its fields replaced, each at most once."""
    import tyro

    said = io.StringIO()
    try:
        # tyro warns of a default of the wrong type, which `check` refuses, too.
        with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            return tyro.cli(
                type(default),
                default=default,
                args=list(arguments),
                prog=program,
                description="",
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╰─╮╯ ") for line in said.getvalue().splitlines()]
        # tyro draws a box: its title, then the message, up to a rule.
        message = " ".join(line for line in lines[1 : next((i for i, x in enumerate(lines) if i and not x), None)])
        raise UserError(message or f"wrong arguments; {program} --help names every option") from None
