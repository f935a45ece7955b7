"""Run a program: log, errors in one line, exit codes, clean-up after a signal."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from transformer.command_line.log import Format, StandardError
from transformer.config import Interrupted, UserError
from transformer.memory import out_of_memory, ran_out
from transformer.streams import ReaderGone, one_line, open_streams


def run(main: Callable[[list[str]], int | None], *, interrupted: str = "interrupted") -> None:
    """Call `main` with the command line and exit.

    Exit codes: 0; 2 for a mistake of the user or a fault of the machine, with one line; 130 after Ctrl-C; 143 after
    SIGTERM and 129 after SIGHUP; 141 if the reader of standard output has gone.
    """
    open_streams()
    handler = StandardError()
    handler.setFormatter(Format())
    log = logging.getLogger("transformer")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of errors that it also raises
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable
    with _interrupted_by_signals(interrupted) as end:
        code = _exit_code(main, interrupted, end)
    sys.exit(code)


def _exit_code(main: Callable[[list[str]], int | None], interrupted: str, end: _End) -> int:
    """Call `main`, print its error to standard error, and return the exit code. `end`: the handler of signals."""
    try:
        try:
            code = main(sys.argv[1:]) or 0
        except SystemExit as stop:  # after --help
            code = stop.code or 0
        finally:
            end.over = True
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
        if end.raised is not None:  # libraries may turn it into an error of their own, for example in an import
            print(one_line(end.raised), file=sys.stderr)
            return getattr(end.raised, "code", 130)
        if (fault := _machine_fault(error)) is None:
            raise
        print("error:", one_line(fault), file=sys.stderr)
        return 2


def _show_unraisable(info: Any) -> None:
    """Print an error that no code can catch, such as one in a destructor; but not one that follows a reported error.

    If a signal came in such a place, send it again: else it would be lost, and the program could not be stopped.
    """
    error = info.exc_value
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        number = error.code - 128 if isinstance(error, Interrupted) else signal.SIGINT
        if isinstance(handler := signal.getsignal(number), _End):
            handler.raised = None
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    # "Event loop is closed": after a failed save, tensorstore calls event loops that Orbax has closed.
    if error is None or not (str(error) == "Event loop is closed" or ran_out(error)):
        sys.__unraisablehook__(info)


# Error codes that are faults of the machine, its disks or permissions. Other OSErrors are bugs of this program.
_FAULTS = "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM EMFILE ENFILE ENAMETOOLONG ELOOP ESTALE ENXIO ENODEV ETIMEDOUT"
_ERRNOS = {getattr(errno, name) for name in _FAULTS.split() if hasattr(errno, name)}


def _machine_fault(error: Exception) -> str | None:
    """A message for an error that is a fault of the machine; None for other errors."""
    if ran_out(error):
        return str(out_of_memory(error, "end other programs, or ask for less at a time"))
    if isinstance(error, ValueError) and _importing_jax(error) and (flags := _variables_of_jax()):
        return f"JAX cannot read its environment variables ({error}); correct or unset what is wrong in {flags}"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # raised by pathlib
        return "a path begins with ~, but that home folder is not known; set HOME, or write the whole path"
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # raised by tempfile
        return "no folder for temporary files can be written; make room in /tmp, or set TMPDIR to another folder"
    if isinstance(error, FileNotFoundError) and _folder_removed():
        return "the current folder was removed; change to one that exists (cd), then run the command again"
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"{error.filename or 'a file'}: {error.strerror or error}; fix that, then run the same command again"
    return None


def _importing_jax(error: Exception) -> bool:
    """Whether the import of JAX raised an error."""
    raised_by = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "jax" not in sys.modules and any(name.split(".")[0] == "jax" for name in raised_by)


def _variables_of_jax() -> str:
    """The environment variables that JAX reads while it is imported, with their values."""
    return ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("JAX_"))


def _folder_removed() -> bool:
    """Whether the current folder of this process was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


class _End:
    """A signal handler that raises `Interrupted`, once: a closed terminal sends several signals, which must not
    interrupt the clean-up. For Ctrl-C it raises `KeyboardInterrupt`, each time.

    It waits for an import in progress, up to `_LONGEST_IMPORT`: libraries whose import is interrupted print tracebacks
    or end the process. After the end of the program it raises nothing, since nothing could catch it: the signal ends
    the process.
    """

    def __init__(self, message: str):
        self._message = message
        self._since = 0.0  # when the first signal came during an import
        self.waits = False
        """Whether a timer calls this handler again."""
        self.over = False
        """Whether the program has ended, so that nothing is left to clean up."""
        self.raised: Interrupted | KeyboardInterrupt | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.over:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.waits = _importing(frame) and self._may_wait()
        if self.waits:
            signal.signal(signal.SIGALRM, lambda _, frame: self(number, frame))
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        if number == signal.SIGINT:
            self.raised = KeyboardInterrupt(self._message)
            raise self.raised
        if self.raised is None:
            self.raised = Interrupted(f"{signal.Signals(number).name}: {self._message}", number)
            raise self.raised

    def _may_wait(self) -> bool:
        self._since = self._since or time.monotonic()
        return hasattr(signal, "setitimer") and time.monotonic() - self._since < _LONGEST_IMPORT


_LONGEST_IMPORT = 10.0  # seconds


def _importing(frame: FrameType | None) -> bool:
    """Whether the code of a frame runs while a module is imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _interrupted_by_signals(message: str) -> Iterator[_End]:
    """A block in which SIGTERM and SIGHUP (a closed terminal) raise `Interrupted`, so that the program cleans up, and
    SIGINT (Ctrl-C) raises `KeyboardInterrupt`. Gives their handler.

    A signal that is ignored, as under nohup, or has another handler is left alone. Ctrl-C ends a process at once before
    and after, if its first lines say so: else Python would print a traceback.
    """
    end = _End(message)
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number, handler in found.items() if handler in usual}
    for number in before:
        signal.signal(number, end)
    try:
        yield end
    finally:
        if end.waits:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
