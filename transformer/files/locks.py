"""One writer at a time: locks on files and folders, and checks that a folder has not been replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from transformer.config import UserError
from transformer.files.paths import local

log = logging.getLogger("transformer")


class Lock:
    """An exclusive lock on a file, which gives the right to write to the folder of this file.

    The operating system releases the lock when the process ends, in whatever way. A bucket has no locks: there the file
    holds a random mark of its latest owner, so that an earlier owner notices that it has lost the lock.
    """

    def __init__(self, path: Any, busy: str = "another process writes there; wait until it is done"):
        """`busy`: the message of the error in a second process."""
        self._path, self._busy, self._file = path, busy, None
        self._mark = secrets.token_hex(8)

    def check(self) -> None:
        """Raise `UserError` if the folder was removed or replaced, or, in a bucket, another process took the lock."""
        try:
            if self._file is None:
                same = not self._mark or self._path.read_text() == self._mark
            else:
                same = _is_open_as(self._path, self._file.fileno())
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise UserError(f"{self._path} cannot be read ({error.strerror or error})") from None
        if not same:
            raise _replaced(self._path.parent)

    @contextlib.contextmanager
    def held(self) -> Iterator[Lock]:
        """Hold the lock during a block. Raises `UserError` at once if another process holds it."""
        if not local(self._path):
            self._path.write_text(self._mark)
            yield self
            return
        with self._path.open("a") as file:
            if not try_lock(file, self._path):
                raise UserError(f"{self._path.parent}: {self._busy}")
            self._file = file
            yield self

    def refuse_held(self) -> None:
        """Raise `UserError` if another process holds the lock, and `OSError` if it can't be opened. Writes nothing. A
        bucket has no locks."""
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            if local(self._path) and not try_lock(stack.enter_context(self._path.open("rb")), self._path):
                raise UserError(f"{self._path.parent}: {self._busy}")


@contextlib.contextmanager
def unchanged(folder: Any) -> Iterator[Callable[[], None]]:
    """Context manager that gives a function to call before each write, for writers that hold no lock.

    The function raises `UserError` if the folder was removed or replaced since the block began. In a bucket this cannot
    be checked, so there it never raises.
    """
    with contextlib.ExitStack() as stack:
        at = None
        with contextlib.suppress(OSError):  # a reader of the folder reports the error
            at = stack.enter_context(open_folder(folder)) if local(folder) else None

        def check() -> None:
            with contextlib.suppress(OSError):
                if at is None or _is_open_as(folder, at):
                    return
            raise _replaced(folder)

        yield check


def _is_open_as(path: Any, at: int) -> bool:
    """Whether the path still names the file that descriptor `at` has open, by device and inode number.

    While a file is open, no other file gets its inode number.
    """
    current, held = os.stat(path), os.fstat(at)
    return (current.st_dev, current.st_ino) == (held.st_dev, held.st_ino)


def _replaced(folder: Any) -> UserError:
    return UserError(
        f"{folder} is no longer the folder that this run began in: it was removed, replaced or taken over by another "
        "run; nothing more is written there"
    )


def try_lock(file: IO | int, path: Any) -> bool:
    """Try to lock an open file or folder, without waiting. Returns False if another process holds the lock.

    Returns True, with a warning, if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that no other process writes there", path, error.strerror)
    return True


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock a folder during a block. Raises `UserError` if another process holds the lock."""
    with open_folder(folder) as at:
        if not try_lock(at, folder):
            raise UserError(f"{folder}: another process writes there; wait until it is done, or name another folder")
        yield


def lock_and_wait(file: Any) -> None:
    """Lock an open file or folder; wait until no other process holds the lock. Does nothing without system locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def open_folder(folder: Any) -> Iterator[int]:
    """Open a folder during a block; gives its file descriptor."""
    at = os.open(folder, os.O_RDONLY)
    try:
        yield at
    finally:
        os.close(at)
