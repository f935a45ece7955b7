"""What is written reaches the disk before the name that makes it valid: a machine that stops hard leaves no zeros. What
is appended is whole lines."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any


def synced(path: str | Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk.

    Raises `OSError` where a file can't be written. Folders that the system can't sync are left to it.
    """
    if os.path.isdir(path):
        with contextlib.suppress(OSError):
            _sync(path)
    else:
        _sync(path)


def append(path: Any, line: str) -> bool:
    """Add a line to a file of lines, in UTF-8. Returns whether half a line stood at the file's end; it stays, as a line
    of its own.

    Raises `OSError` where there is no room: then what was written of the line is taken back.
    """
    with open(path, "a+b", buffering=0) as file:
        _alone(file)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        half = size > 0 and file.read(1) != b"\n"
        content = memoryview((("\n" if half else "") + line + "\n").encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise
    return half


def _alone(file: Any) -> None:
    """Wait until nobody else appends to a file, where the system knows locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _sync(path: str | Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
