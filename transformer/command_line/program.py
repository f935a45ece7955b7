"""Run a program: its log, errors in one line, exit codes, and an end in order after a signal."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from transformer.command_line.log import Format, StandardError
from transformer.config import Interrupted, UserError
from transformer.memory import out_of_memory, ran_out
from transformer.streams import ReaderGone, one_line, open_streams


def run(main: Callable[[list[str]], int | None], *, interrupted: str = "interrupted") -> None:
    """Call `main` with the command line and exit: 0, 2 on a mistake of the user's or trouble of the machine (in one
    line), 130 on Ctrl-C, 143 and 129 where SIGTERM or SIGHUP ended a run in order."""
    open_streams()
    handler = StandardError()
    handler.setFormatter(Format())
    log = logging.getLogger("transformer")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it raises
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    with _ended_by_signals(interrupted):
        code = _outcome(main, interrupted)
    sys.exit(code)


def _outcome(main: Callable[[list[str]], int | None], interrupted: str) -> int:
    """The exit code of a call of `main`; what went wrong is written to standard error."""
    try:
        try:
            code = main(sys.argv[1:]) or 0
        except SystemExit as stop:  # after --help
            code = stop.code or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2
    except Interrupted as error:
        print(one_line(error), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except ReaderGone:
        return 141
    except Exception as error:
        if (trouble := _trouble(error)) is None:
            raise
        print("error:", one_line(trouble), file=sys.stderr)
        return 2


def _unraisable(info: Any) -> None:
    """Show an error that no code can handle, as of a destructor; but not those that follow an error told already."""
    error = info.exc_value
    # Tensorstore calls loops that Orbax closed when a save had failed.
    if error is None or not (str(error) == "Event loop is closed" or ran_out(error)):
        sys.__unraisablehook__(info)


# What an operating system refuses whatever the program does; other errors of it are this program's own.
_MACHINE = "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM EMFILE ENFILE ENAMETOOLONG ELOOP ESTALE ENXIO ENODEV ETIMEDOUT"
_ERRNOS = {getattr(errno, name) for name in _MACHINE.split() if hasattr(errno, name)}


def _trouble(error: Exception) -> str | None:
    """What is wrong with the machine, if that is what an error says."""
    if ran_out(error):
        return str(out_of_memory(error, "end other programs, or ask for less at a time"))
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib
        return "a path begins with ~, but that home folder is not known; set HOME, or write the path out"
    if isinstance(error, FileNotFoundError) and _gone():
        return "the folder that this command runs in was removed; go to one that is there (cd), then run it again"
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"{error.filename or 'a file'}: {error.strerror or error}; mend that, then run the same command again"
    return None


def _gone() -> bool:
    """Whether the folder that this process runs in was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def _ended_by_signals(message: str) -> Iterator[None]:
    """A block that SIGTERM and SIGHUP, a terminal's end, break off with `Interrupted`, so that it cleans up. Those that
    are ignored, as under nohup, or handled otherwise stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    asked = [number for number in asked if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: Any) -> NoReturn:
        for other in asked:  # a terminal that ends sends several; the cleaning up is not to be broken off, too
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(f"{signal.Signals(number).name}: {message}", number)

    for number in asked:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, signal.SIG_DFL)
