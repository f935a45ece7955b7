"""argparse with errors in one line. An option that is given twice is an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from transformer.config import UserError, whole_number


class _Once(argparse.Action):
    """An option that may be given once; argparse would silently use the last value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.refuse_second(self.dest, option_string)
        setattr(namespace, self.dest, values)


class _Flag(_Once):
    """An option without a value, which may be given once."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool = False, **more: Any):
        super().__init__(option_strings, dest, nargs=0, default=default, **more)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, namespace, True, option_string)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations. Errors are `UserError`s of one line. An option that is given twice is an error,
    unless its action is "append"."""

    def __init__(self, program: str, description: str | None, *, reads_lines: bool = False, **options: Any):
        """`reads_lines`: text comes from standard input. If it is given as an argument, the error says so."""
        super().__init__(program, description=description, allow_abbrev=False, **options)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.register("action", "store_true", _Flag)
        self._given: set[str] = set()
        self._reads_lines = reads_lines

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        self._given.clear()
        return super().parse_known_args(*given, **more)

    def refuse_second(self, name: str, shown: str | None) -> None:
        """Raise `UserError` if this option was given before."""
        if name in self._given:
            raise UserError(f"{shown or name} is given twice; leave one of the two out")
        self._given.add(name)

    def parse_args(self, *given: Any, **more: Any) -> Any:
        args, rest = self.parse_known_args(*given, **more)
        if rest:
            if self._reads_lines and (rest[0] == "--input" or not any(one.startswith("-") for one in rest)):
                raise UserError(f"{rest[0]!r} is no option; {from_standard_input(self.prog)}")
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return args

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists every option")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would ignore an error, such as a full disk

    def options(self) -> list[str]:
        """The names of all options, without the leading dashes."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]


def from_standard_input(program: str) -> str:
    """What to tell if text is given as an argument of a program that reads it elsewhere."""
    return f"text is read from standard input, as in {program} WORKDIR < FILE"


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        number = whole_number(text)
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return read
