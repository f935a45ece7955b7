"""What is written reaches the disk before the name that makes it valid: a machine that stops hard leaves no zeros."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def synced(path: str | Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk.

    Raises `OSError` where a file can't be written. Folders that the system can't sync are left to it.
    """
    if os.path.isdir(path):
        with contextlib.suppress(OSError):
            _sync(path)
    else:
        _sync(path)


def _sync(path: str | Path) -> None:
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
