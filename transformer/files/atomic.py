"""Writes that happen whole or not at all: a file, a line of a file, a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.config import UserError
from transformer.files.locks import alone, only_writer
from transformer.files.paths import local, refuse_links
from transformer.files.temporaries import own_name
from transformer.phases import phase


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """A block that writes to or below `path`. An `OSError` in it becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise UserError(
            f"{where} cannot be written ({why}); make room or mend the folder, then run the same command again"
        ) from error


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


def replace(path: Any, content: bytes) -> None:
    """Give a file this content, whole or not at all. A file that has it already is left alone."""
    temporary = path.parent / own_name(path.name)
    refuse_links(path)
    with writing(path):
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            if local(path):
                synced(temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with phase(f"renaming {path.name}"):
            temporary.replace(path)
        if local(path):
            synced(path.parent)


def append(path: Any, line: str) -> bool:
    """Add a line to a file of lines, in UTF-8. Returns whether half a line stood at the file's end; it stays, as a line
    of its own.

    Raises `OSError` where there is no room: then what was written of the line is taken back.
    """
    with open(path, "a+b", buffering=0) as file:
        alone(file)
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


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder for a block to fill. Once the block is done, and all of it is on the disk, it becomes `out`, which must
    be new or empty. If the block fails, nothing of it stays.

    Raises `OSError` where the disk refuses something, and `UserError` where something else came to `out` meanwhile.
    """
    made = [folder for folder in out.parents if not folder.exists()]
    there = out.exists()
    # A folder that is there may be a mount: it is filled, not replaced.
    building = (out if there else out.parent) / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        building.mkdir(parents=True)
        with only_writer(out) if there else contextlib.nullcontext():
            yield building
            _require_free(out, building, there)
            for path in (*building.rglob("*"), building):
                synced(path)
            _require_free(out, building, there)
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


def _require_free(out: Path, building: Path, there: bool) -> None:
    """Raise `UserError` unless `out` is still as it was when `building` was begun: empty, or not there."""
    free = out.is_dir() and list(out.iterdir()) == [building] if there else not os.path.lexists(out)
    if not free:
        raise UserError(
            f"{out}: something else was written there meanwhile, or it was replaced; that stays as it is: name a new "
            "folder, then run the command again"
        )
