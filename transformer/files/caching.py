"""Caches of sealed folders: one that is there is read, one that is not or is damaged is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformer.config import UserError
from transformer.files.locks import alone, opened
from transformer.files.sealing import MANIFEST, damage, digest, seal, sealed
from transformer.files.temporaries import temporary
from transformer.phases import phase

log = logging.getLogger("transformer")
T = TypeVar("T")

_digests: dict[tuple[int, ...], dict[str, Any]] = {}


def digest_once(path: Path) -> dict[str, Any]:
    """As `digest`; a file that has not changed since is read once a process."""
    found = path.stat()
    key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    if key not in _digests:
        _digests[key] = digest(path)
    return _digests[key]


def cached(folder: Path, make: Callable[[Path], None], read: Callable[[Path], T], what: str) -> T:
    """What `read` returns for a sealed folder of a cache: the one that is there, or the one that `make` fills now.

    `make` gets an empty folder. It is sealed, read, and renamed to `folder` when `make` returns. A damaged folder is
    made anew, with a warning that calls it `what`. `read` raises `ValueError` or `OSError` where files do not fit.
    """
    if folder.exists():
        try:
            wrong = damage(folder, digest_once) if sealed(folder) else f"{folder} has no {MANIFEST}"
            if not wrong:
                return read(folder)
        except (FileNotFoundError, ValueError, KeyError) as error:
            wrong = f"{folder}: {error}"
        log.warning("%s: making %s again", wrong, what)
    with temporary(folder.parent, folder.name) as new:
        with phase(f"building {what}"):
            make(new)
            seal(new)
        try:
            read(new)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: {what} cannot be read back ({error}); see whether the disk is full, or files may not be so "
                "large (ulimit -f), then run the same command again"
            ) from error
        with phase(f"renaming {what}"):
            _take_place(new, folder)
    return read(folder)


def _take_place(new: Path, folder: Path) -> None:
    """Rename a sealed folder. A whole one that another process put there meanwhile stays; a damaged one, or anything
    else, goes.

    One process does so at a time: else a whole folder could be taken for the damaged one that it replaced.
    """
    with opened(folder.parent) as parent:
        alone(parent)
        if os.path.lexists(folder):
            if sealed(folder) and damage(folder, digest_once) is None:
                return
            with temporary(folder.parent, "replaced") as old:
                os.rename(folder, old / folder.name)
                os.rename(new, folder)
        else:
            os.rename(new, folder)
