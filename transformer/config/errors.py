"""Exceptions that end the program with a one-line message, and the display of values in messages."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """A user's mistake. The message is one line: what is wrong, where, and the fix.

    Entry points print the message and exit with code 2. Python callers can catch it as a ValueError.
    """


class Interrupted(BaseException):
    """A signal asked the program to stop, and the program stopped cleanly.

    Entry points print the message and exit with `code`, which is 128 + the signal's number. Like KeyboardInterrupt it
    is not an `Exception`, so `except Exception` does not catch it.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


def shown(value: Any) -> str:
    """The value's `repr` for a message, as one line, cut after 200 characters. Never raises."""
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())  # arrays have several lines
    except Exception as error:  # an integer of 6,000 digits, or a faulty `__repr__` of the user's class
        return f"<{type(value).__name__} that cannot be shown: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}..."
