"""Replace fields of a dataclass composed of sections by `--dotted.name value` arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import operator
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from transformer.command_line.parser import from_standard_input
from transformer.config import UserError, flatten

C = TypeVar("C")

_NARROW = 40  # columns; in fewer than 5, tyro never ends

_NO_CHOICE = re.compile(
    r"Error parsing (?P<option>\S+): no type matching (?P<choices>.+) could be instantiated from \[(?P<given>.*)\]\."
)

_TEXT = {"decode.banned", "data.fields", "data.second", "data.label", "tune.class_weights"}
"""Fields that hold text. Others, and their parts, are paths or names."""


def override(default: C, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> C:
    """`default` with its fields replaced by `--dotted.name value` arguments; --help prints all of them.

    The values of a list that is given several times add up. Raises `UserError` for another field that is given twice,
    for a value of the wrong type, and for an unknown name: then the message suggests similar names of fields and of
    `options`, the program's other options.
    """
    fields = flatten(default)
    known = [*fields, *options]
    groups, verb = _groups(arguments), program.startswith("python -m")
    first: dict[str, list[str]] = {}
    more: list[tuple[str, list[str]]] = []
    for name, group in groups:
        if not name:
            read = from_standard_input(program) if verb else "--help lists every option"
            raise UserError(f"{group[0]!r} is no option; {read}")
        if name not in fields and name != "help":
            if name == "input" and verb:
                raise UserError(f"--input is no option; {from_standard_input(program)}")
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [
                k for k in known if k.split(".")[-1] == name.split(".")[-1]
            ]
            hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else "--help lists every option"
            raise UserError(f"unknown option {group[0].split('=')[0]}; {hint}")
        if first.setdefault(name, group) is not group:
            if not _is_list(type(default), name):
                raise UserError(f"--{name} is given twice; leave one of the two out")
            more.append((name, group))
    config = _parsed(default, [argument for group in first.values() for argument in group], program)
    for name, group in more:
        added = flatten(_parsed(default, group, program))[name]
        config = _replaced(config, name, (*flatten(config)[name], *added))
    for name in first.keys() & _TEXT:
        value = flatten(config)[name]
        if isinstance(value, tuple):
            config = _replaced(config, name, tuple(text_of(f"--{name}", text) for text in value))
        elif value is not None:
            config = _replaced(config, name, text_of(f"--{name}", value))
    return config


def text_of(option: str, argument: str) -> str:
    """An argument of the command line that is text, not a path.

    In a locale other than UTF-8, Python keeps bytes that it can't decode as surrogates; they are read as UTF-8. Raises
    `UserError` if they are not.
    """
    if argument.isascii() or not any("\udc80" <= char <= "\udcff" for char in argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        raise UserError(f"{option}: not valid UTF-8; give text in UTF-8") from None


def _groups(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, arguments) of each option: the name has underscores for dashes, the arguments are unchanged. Arguments
    before the first option have the name ""."""
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
    """Whether the field with this dotted name is a tuple of any length."""
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return Ellipsis in get_args(kind)


def _replaced(config: C, name: str, value: Any) -> C:
    """The config with `value` in the field of this dotted name."""
    section, _, rest = name.partition(".")
    value = _replaced(getattr(config, section), rest, value) if rest else value
    return dataclasses.replace(config, **{section: value})


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """A block in which the terminal seems to have some columns at least."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _NARROW:
        os.environ["COLUMNS"] = str(_NARROW)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _parsed(default: C, arguments: Sequence[str], program: str) -> C:
    """`default` overridden by arguments that name each field at most once."""
    import tyro

    errors = io.StringIO()
    try:
        # tyro only warns about a default of the wrong type; `check` raises for it.
        with contextlib.redirect_stderr(errors), warnings.catch_warnings(action="ignore"), _wide_enough():
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
        raise UserError(_message(errors.getvalue(), program)) from None


def _message(box: str, program: str) -> str:
    """What tyro says in its box, in one line: a title, then the message, then an empty line or a horizontal one."""
    lines = [line.strip("│╭╰─╮╯ ") for line in box.splitlines()][1:]
    lines = ["" if set(line) == {"-"} else line for line in lines]  # a box of ASCII has no corners
    message = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines)))
    if wrong := _NO_CHOICE.fullmatch(message):  # such as {None}|{STR STR}: one word where two are needed
        choices = " or ".join(choice.strip("{}") for choice in wrong["choices"].split("|"))
        return f"{wrong['option']}: give {choices}, not {wrong['given'] or 'nothing'}"
    return f"{message.removesuffix('.') or 'wrong arguments'}; {program} --help lists every option"
