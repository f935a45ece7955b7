"""Robust standard streams, and text that is safe to print on them. A failing stream costs no result and no run.

Standard output raises one clear error if it cannot be written. Standard error, which carries the log, never raises,
since it may have no reader. Both write characters that their encoding lacks as escapes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import select
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

from transformer.config import UserError


class StreamError(UserError, OSError):
    """A standard stream cannot be read or written. Also an `OSError`, for code that handles those."""


class ReaderGone(BrokenPipeError):
    """The reader of standard output has closed the pipe."""


def open_streams() -> None:
    """Replace the standard streams of the process by robust ones. Keeps streams that a caller has replaced already.

    A closed standard stream is reopened as one that always fails. Otherwise the next file that this program opens
    would get its file descriptor, and the output of libraries would go into that file.
    """
    if sys.stdin is sys.__stdin__:
        source = io.BufferedReader(_Input(_number(sys.stdin, os.O_WRONLY), "rb", closefd=False))
        sys.stdin = io.TextIOWrapper(source, encoding=_encoding(sys.stdin), errors="surrogateescape")
    for name, kind, flags in (("stdout", _Output, os.O_RDONLY), ("stderr", _Log, os.O_WRONLY)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
        at_once = name == "stderr" or (stream is not None and (stream.line_buffering or stream.write_through))
        buffer = io.BufferedWriter(kind(_number(stream, flags), "wb", closefd=False))
        options = {"errors": "backslashreplace", "line_buffering": at_once}
        setattr(sys, name, io.TextIOWrapper(buffer, encoding=_encoding(stream), **options))


def _number(stream: Any, flags: int) -> int:
    """The file descriptor of a standard stream.

    For a closed stream (None), open the lowest free descriptor with `flags` of the opposite direction, so that every
    use of it fails with "bad file descriptor".
    """
    if stream is not None:
        return stream.fileno()
    number = os.open(os.devnull, flags)
    os.set_inheritable(number, True)  # child processes get it, too
    return number


def _encoding(stream: Any) -> str:
    return "utf-8" if stream is None else stream.encoding


class _Input(io.FileIO):
    """Standard input. Raises `StreamError` if it cannot be read."""

    def read(self, size: int = -1) -> bytes:
        return self._checked(super().read, size)

    def readall(self) -> bytes:
        return self._checked(super().readall)

    def readinto(self, buffer: Any) -> int:
        return self._checked(super().readinto, buffer)

    def _checked(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            while (data := read(*arguments)) is None:  # a non-blocking pipe without data; None is not the end
                select.select([self], [], [])
            return data
        except OSError as error:
            reason = error.strerror or error
            raise StreamError(f"standard input cannot be read ({reason}); give it a file or a pipe") from None


class _Output(io.FileIO):
    """Standard output. The first write that fails raises an error; later writes are dropped."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            while (count := super().write(data)) is None:  # a non-blocking pipe that is full
                select.select([], [self], [])
            return count
        except BrokenPipeError as error:
            self._failed = True
            raise ReaderGone(*error.args) from None
        except OSError as error:
            self._failed = True
            reason = error.strerror or error
            raise StreamError(
                f"standard output cannot be written ({reason}); make room there, or redirect it"
            ) from None


class _Log(io.FileIO):
    """Standard error. Drops text that cannot be written."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            if (count := super().write(data)) is not None:
                return count
        return len(data)


def tell(line: str) -> None:
    """Write a line to standard error. Safe in a signal handler, which may interrupt another write."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, line.encode("utf-8", "backslashreplace"))


# ---- Text -----------------------------------------------------------------------------------------------------------

_JOINERS = "\u200c\u200d"  # zero-width (non-)joiners, which words and emoji need


def plain(text: str, keep: str = "\t") -> str:
    """Make untrusted text harmless on a terminal.

    Replaces control and format characters (such as those that change the writing direction), lone surrogates and line
    separators by escapes such as \\x1b, except those in `keep`.
    """
    if text.isprintable():
        return text
    return "".join(char if char in keep or not _harmful(char) else _escaped(char) for char in text)


def _harmful(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def one_line(message: Any) -> str:
    """A message as one harmless line."""
    return plain(" ".join(str(message).splitlines()))


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that can be encoded as UTF-8 and is harmless on a terminal, whatever strings it contains.

    JSON escapes replace lone surrogates, as in a file name that is not UTF-8, and the characters that `plain` escapes.
    NaN and infinity, which JSON lacks, become null.
    """
    text = json.dumps(numbers(value), ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    for char in set(text) - {"\n"}:
        if _harmful(char):
            text = text.replace(char, json.dumps(char)[1:-1])
    return text


def numbers(value: Any) -> Any:
    """Replace each number that is not finite by None, in nested dicts and lists. Tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: numbers(one) for key, one in value.items()}
    return [numbers(one) for one in value] if isinstance(value, (list, tuple)) else value


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON. Escapes non-ASCII characters if standard output cannot encode them."""
    text = to_json(value)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(numbers(value))
    print(text)
