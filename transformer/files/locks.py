"""One writer at a time: locks on files and folders, and checks that a folder is still the same one."""

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
    """The right to write to a folder, while a file in it is locked.

    The lock is the system's: it goes with the process, however that ends. A bucket has none: there the file holds a
    mark of its last owner, so that the owner before it finds out.
    """

    def __init__(self, path: Any, busy: str = "another process writes there; wait until it is done"):
        """`busy`: what a second process is told."""
        self._path, self._busy, self._file = path, busy, None
        self._mark = secrets.token_hex(8)

    def check(self) -> None:
        """Raise `UserError` if the folder was removed or replaced since, or, in a bucket, another process took it."""
        try:
            if self._file is None:
                same = not self._mark or self._path.read_text() == self._mark
            else:
                same = _same(self._path, self._file.fileno())
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise UserError(f"{self._path} cannot be read ({error.strerror or error})") from None
        if not same:
            raise _no_longer(self._path.parent)

    @contextlib.contextmanager
    def held(self) -> Iterator[Lock]:
        """Hold the lock for a block. Raises `UserError` at once where another process holds it."""
        if not local(self._path):
            self._path.write_text(self._mark)
            yield self
            return
        with self._path.open("a") as file:
            if not flock(file, self._path):
                raise UserError(f"{self._path.parent}: {self._busy}")
            self._file = file
            yield self


@contextlib.contextmanager
def unchanged(folder: Any) -> Iterator[Callable[[], None]]:
    """A block with a function to call before each write. It raises `UserError` if another folder, or none, lies at this
    path by then.

    For whoever adds to a folder without a lock. Of one in a bucket nothing can be told.
    """
    with contextlib.ExitStack() as stack:
        at = None
        with contextlib.suppress(OSError):  # told by whoever reads there
            at = stack.enter_context(opened(folder)) if local(folder) else None

        def check() -> None:
            with contextlib.suppress(OSError):
                if at is None or _same(folder, at):
                    return
            raise _no_longer(folder)

        yield check


def _same(path: Any, at: int) -> bool:
    """Whether what lies at a path is what is open under a descriptor. (As long as it is open, nothing else gets its
    number.)"""
    there, held = os.stat(path), os.fstat(at)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _no_longer(folder: Any) -> UserError:
    return UserError(
        f"{folder} is no longer the folder that this run began in: it was removed, replaced or taken over by another "
        "run; nothing more is written there"
    )


def flock(file: IO | int, path: Any) -> bool:
    """Lock an open file or folder. Returns False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # another system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that nobody else writes there", path, error.strerror)
    return True


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A block in which this process alone fills a folder. Raises `UserError` where another one does."""
    with opened(folder) as at:
        if not flock(at, folder):
            raise UserError(f"{folder}: another process writes there; wait until it is done, or name another folder")
        yield


def alone(file: Any) -> None:
    """Wait until nobody else writes to a file or folder that is open here, where the system knows locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def opened(folder: Any) -> Iterator[int]:
    """The descriptor of an open folder."""
    at = os.open(folder, os.O_RDONLY)
    try:
        yield at
    finally:
        os.close(at)
