"""The log on standard error. Text from outside is shown with its control characters escaped."""

from __future__ import annotations

import copy
import logging
import os
import sys
from typing import Any

from transformer.streams import one_line, plain


class StandardError(logging.StreamHandler):
    """Write to the present sys.stderr: a progress bar replaces it, to stay below the log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class Format(logging.Formatter):
    """Escape text from outside, such as file names and samples: it can neither control the terminal nor imitate another
    line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        text = plain(super().format(record), keep="\n\t")
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _escaped(argument: Any) -> Any:
    if isinstance(argument, BaseException):
        return one_line(argument)
    return plain(str(argument)) if isinstance(argument, (str, os.PathLike)) else argument
