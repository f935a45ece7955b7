"""What ends a program in one line, and how a message shows a value."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and the fix. Entry points print it and exit 2.

    From Python it is a ValueError like any other.
    """


class Interrupted(BaseException):
    """A signal asked the program to stop, and it has done so. Entry points print the message and exit with `code`.

    Like KeyboardInterrupt it is no error that others may catch.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


def shown(value: Any) -> str:
    """A value as a message shows it, whatever it is: cut where it is long."""
    try:
        text = repr(value)
    except Exception as error:  # a number of 6,000 digits; an object of the user's own
        return f"<{type(value).__name__} that cannot be shown: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}..."
