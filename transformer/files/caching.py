"""A cache of sealed folders: read a folder if it exists, make it if it is missing or damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformer.config import UserError
from transformer.files.compared import write_file
from transformer.files.locks import lock_and_wait, open_folder
from transformer.files.sealing import MANIFEST, damage, digest, seal, sealed
from transformer.files.temporaries import temporary
from transformer.phases import phase

log = logging.getLogger("transformer")
T = TypeVar("T")

ENTRY = "entry"
"""A file in each folder of a cache, which holds the name of the folder. Folders of earlier versions lack it."""

_digests: dict[tuple[int, ...], dict[str, Any]] = {}


def digest_once(path: Path) -> dict[str, Any]:
    """As `digest`, but each process reads a file only once, unless the file changes."""
    stat = path.stat()
    key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _digests:
        _digests[key] = digest(path)
    return _digests[key]


def cached(folder: Path, make: Callable[[Path], None], read: Callable[[Path], T], what: str) -> T:
    """Return `read(folder)` for a sealed folder of a cache; make the folder first if it is missing or damaged.

    `make` fills an empty folder, by `compared` and `write_file`. It is then sealed, read, and renamed to `folder`.
    Before a damaged folder is made again, a warning names it by `what`. A folder that was made under another name
    counts as damaged. `read` must raise `ValueError`, `KeyError` or `OSError` for wrong files. Raises `UserError` if
    the new folder cannot be read back.
    """
    if folder.exists():
        try:
            wrong = _fault(folder) if sealed(folder) else f"{folder} has no {MANIFEST}"
            if not wrong:
                return read(folder)
        except (FileNotFoundError, ValueError, KeyError) as error:
            wrong = f"{folder}: {error}"
        log.warning("%s: making %s again", wrong, what)
    with temporary(folder.parent, folder.name) as new:
        with phase(f"building {what}"):
            make(new)
            write_file(new / ENTRY, os.fsencode(folder.name))
            seal(new)
        try:
            read(new)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: {what} cannot be read back ({error}); check for a full disk and for a limit on file sizes "
                "(ulimit -f), then run the same command again"
            ) from error
        with phase(f"renaming {what}"):
            _move_into_place(new, folder)
    return read(folder)


def _fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder of a cache, in words, or None."""
    entry = folder / ENTRY
    if (wrong := damage(folder, digest_once)) or not entry.exists():
        return wrong
    name = os.fsdecode(entry.read_bytes())
    return None if name == folder.name else f"{folder} was made as {name} and has been renamed or copied"


def _move_into_place(new: Path, folder: Path) -> None:
    """Rename a sealed folder to `folder`. Keep an undamaged one that another process put there meanwhile; else replace.

    A lock lets one process do so at a time. Otherwise a process could mistake a new folder for the damaged one that it
    has just replaced.
    """
    with open_folder(folder.parent) as parent:
        lock_and_wait(parent)
        if os.path.lexists(folder):
            if sealed(folder) and _fault(folder) is None:
                return
            with temporary(folder.parent, "replaced") as old:
                os.rename(folder, old / folder.name)
                os.rename(new, folder)
        else:
            os.rename(new, folder)
