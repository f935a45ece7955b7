"""The standard streams, and text for them. What goes wrong there takes neither a result nor a run away.

Standard output raises one clear error when it cannot be written. Standard error, which the log goes to, never raises:
nobody may be there to read it. Both spell out what their encoding lacks.
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
    """A standard stream that cannot be read or written. It is an `OSError`, too, for code that handles those."""


class ReaderGone(BrokenPipeError):
    """Whoever read standard output has gone."""


def open_streams() -> None:
    """Put streams that keep the promises above in the place of the process's own; streams that a caller of this
    program has put there stay.

    A standard stream that was closed is opened as one that fails. Else the next file that this program opens would
    take its number, and what a library prints would go into that file.
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
    """The file descriptor of a standard stream. In the place of one that was closed a new one, the lowest that is
    free; whoever uses it as a stream, against its flags, is told that this is a bad descriptor."""
    if stream is not None:
        return stream.fileno()
    number = os.open(os.devnull, flags)
    os.set_inheritable(number, True)  # by the processes that this one starts
    return number


def _encoding(stream: Any) -> str:
    return "utf-8" if stream is None else stream.encoding


class _Input(io.FileIO):
    """Standard input."""

    def read(self, size: int = -1) -> bytes:
        return self._told(super().read, size)

    def readall(self) -> bytes:
        return self._told(super().readall)

    def readinto(self, buffer: Any) -> int:
        return self._told(super().readinto, buffer)

    def _told(self, read: Callable[..., Any], *given: Any) -> Any:
        try:
            while (found := read(*given)) is None:  # a pipe that does not wait; None is not the end
                select.select([self], [], [])
            return found
        except OSError as error:
            reason = error.strerror or error
            raise StreamError(f"standard input cannot be read ({reason}); give it a file or a pipe") from None


class _Output(io.FileIO):
    """Standard output. The first write that fails raises an error; what is written after it is dropped."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            while (count := super().write(data)) is None:  # a pipe that does not wait
                select.select([], [self], [])
            return count
        except BrokenPipeError as error:
            self._failed = True
            raise ReaderGone(*error.args) from None
        except OSError as error:
            self._failed = True
            reason = error.strerror or error
            raise StreamError(
                f"standard output cannot be written ({reason}); make room there, or send it elsewhere"
            ) from None


class _Log(io.FileIO):
    """Standard error. What cannot be written is dropped."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            if (count := super().write(data)) is not None:
                return count
        return len(data)


def tell(line: str) -> None:
    """Write a line to standard error from a signal handler, which may run while another line is being written."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, line.encode("utf-8", "backslashreplace"))


# ---- Text -----------------------------------------------------------------------------------------------------------

_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def plain(text: str, keep: str = "\t") -> str:
    """Text from outside, harmless on a terminal: control characters, halves of characters, and what turns the direction
    of writing are spelt out, such as \\x1b. Those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(char if char in keep or not _harmful(char) else _spelt(char) for char in text)


def _harmful(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def one_line(message: Any) -> str:
    """A message as one harmless line."""
    return plain(" ".join(str(message).splitlines()))


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that is UTF-8, and harmless on a terminal, whatever its strings hold: JSON's escapes stand for
    half a character, as in a file name that is no UTF-8, and for what `plain` spells out. NaN and infinity, which JSON
    does not have, become null."""
    text = json.dumps(numbers(value), ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(json.dumps(char)[1:-1] if char != "\n" and _harmful(char) else char for char in text)


def numbers(value: Any) -> Any:
    """`value`, of dicts, lists and plain values, with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: numbers(one) for key, one in value.items()}
    return [numbers(one) for one in value] if isinstance(value, (list, tuple)) else value


def print_json(value: Any) -> None:
    """Print `value` on one line of standard output, as JSON in whatever encoding that has."""
    text = to_json(value)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(numbers(value))
    print(text)
