"""Atomic writes: of a file, a line of a file, or a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.config import UserError
from transformer.files.compared import write_file
from transformer.files.locks import lock_and_wait, only_writer
from transformer.files.paths import local, refuse_links
from transformer.files.temporaries import sweep, temporary_name
from transformer.phases import phase


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """Context manager for a block that writes to or below `path`. Turns an `OSError` in it into a `UserError`."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise UserError(
            f"{where} cannot be written ({why}); make room or mend the folder, then run the same command again"
        ) from error


def synced(path: str | Path) -> None:
    """Call fsync on a file or folder: wait until the content or the names in it are on the disk.

    Raises `OSError` if that fails for a file. Ignores folders that the system cannot sync.
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
    """Write a file atomically, unless it already has this content; read it back. Raises `UserError` if that fails."""
    temporary = path.parent / temporary_name(path.name)
    refuse_links(path)
    if local(path) and path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a device or a pipe, which a file would replace; name a file")
    with writing(path):
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_file(temporary, content)
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
    """Append a line to a file, in UTF-8.

    Returns whether the file ended in an incomplete line; that becomes a line by itself. Raises `OSError` if the line
    cannot be written, such as on a full disk, after removing the part that was written.
    """
    with open(path, "a+b", buffering=0) as file:
        lock_and_wait(file)
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


def require_new(folder: Any) -> None:
    """Raise `UserError` unless a folder is missing or empty. First remove what killed writers of this folder left."""
    if local(folder):
        for place in (Path(folder), Path(folder).parent):  # see `new_folder`
            with contextlib.suppress(OSError):
                sweep(place)
    if os.path.islink(folder) and not folder.exists():
        raise UserError(f"{folder} is a link to nothing; remove it, or name a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Context manager: a temporary folder to fill, which becomes `out` after the block, once it is on the disk.

    `out` must be new or empty. If the block fails, the temporary folder is removed; if the process is killed,
    `require_new` removes it. Raises `OSError` if writing fails, and `UserError` if something else was written to `out`
    meanwhile.
    """
    created = [folder for folder in out.parents if not folder.exists()]
    existed = out.exists()
    # An existing folder may be a mount point: fill it instead of replacing it.
    building = (out if existed else out.parent) / temporary_name(f".{out.name}")
    try:
        building.mkdir(parents=True)
        with only_writer(out) if existed else contextlib.nullcontext():
            yield building
            _require_free(out, building, existed)
            for path in (*building.rglob("*"), building):
                synced(path)
            _require_free(out, building, existed)
            if existed:
                for path in sorted(building.iterdir()):
                    path.rename(out / path.name)
                building.rmdir()
            else:
                building.rename(out)
            synced(out.parent)
    except BaseException:
        for _ in range(50):  # threads of a library may still be writing there
            shutil.rmtree(building, ignore_errors=True)
            if not building.exists():
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError):  # other processes may be using these folders by now
            for folder in created:
                folder.rmdir()
        raise


def _require_free(out: Path, building: Path, existed: bool) -> None:
    """Raise `UserError` unless `out` is still as it was when `building` was created: empty (`existed`), or missing."""
    free = out.is_dir() and list(out.iterdir()) == [building] if existed else not os.path.lexists(out)
    if not free:
        raise UserError(
            f"{out}: something else was written there meanwhile, or it was replaced; its content was not changed. Give "
            "a new folder and run the command again"
        )
