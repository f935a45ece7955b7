"""What is written reaches the disk before the name that makes it valid: a machine that stops hard leaves no zeros. What
is appended is whole lines."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
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


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder for a block to fill. Once the block is done, and all of it is on the disk, it becomes `out`, which must
    be new or empty. If the block fails, nothing of it stays.

    Raises `OSError` where the disk refuses something.
    """
    made = [folder for folder in out.parents if not folder.exists()]
    there = out.exists()
    # A folder that is there may be a mount: it is filled, not replaced.
    building = (out if there else out.parent) / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        building.mkdir(parents=True)
        yield building
        for path in (*building.rglob("*"), building):
            synced(path)
        if there:
            for path in sorted(building.iterdir()):
                path.rename(out / path.name)
            building.rmdir()
        else:
            building.rename(out)
        synced(out.parent)
    except BaseException:
        for _ in range(50):  # while threads of a library may still write there
            shutil.rmtree(building, ignore_errors=True)
            if not building.exists():
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # others may use them by now
            for folder in made:
                folder.rmdir()
        raise


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
