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
        """`reads_lines`: text comes from standard input; an error says so to who gives it as an argument."""
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

    def error(self, message: str) -> NoReturn:
        before, _, rest = message.partition("unrecognized arguments: ")
        if self._reads_lines and not before and not rest.startswith("-"):
            read = f"text is read from standard input, as in {self.prog} WORKDIR < FILE"
            raise UserError(f"{rest!r} is no option; {read}")
        raise UserError(f"{message}; {self.prog} --help lists every option")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would ignore an error, such as a full disk

    def options(self) -> list[str]:
        """The names of all options, without the leading dashes."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        number = whole_number(text)
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return read
