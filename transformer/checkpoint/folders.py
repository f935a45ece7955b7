"""Changes to the folder of a checkpoint: make room for it, remove it, put a new average in place of the old one."""

from __future__ import annotations

import itertools
import logging
import os

from etils import epath

from transformer.checkpoint.layout import AVERAGE, NEXT, unfinished
from transformer.files import MANIFEST, UNFINISHED, files_in, local, sealed, synced, writing

log = logging.getLogger("transformer")


def clear(path: epath.Path) -> None:
    """Make room for a checkpoint: remove what was left unfinished there, and keep anything else under another name,
    as whole arrays without a manifest that may be half a copy."""
    if unfinished(path):
        remove(path)
    elif path.exists():
        set_aside(path)


def set_aside(path: epath.Path) -> None:
    """Rename a folder that is not what its name says; all of it stays."""
    others = (path.with_name(f"{path.name}.damaged{'' if n == 1 else f'-{n}'}") for n in itertools.count(1))
    aside = next(other for other in others if not other.exists())
    with writing(path):
        path.rename(aside)
    log.warning("%s is kept as %s", path, aside.name)


def remove(path: epath.Path) -> None:
    """Remove a checkpoint; where that is broken off, what is left is an unfinished one."""
    if os.path.islink(path):  # what it names is another's
        return path.unlink()
    if sealed(path):
        (path / MANIFEST).replace(path / UNFINISHED)
    for inside in path.iterdir():
        if inside.name != UNFINISHED:
            inside.rmtree()
    path.rmtree()


def replace_average(folder: epath.Path) -> None:
    """Put a new average, if there is a complete one, where the old one is. At each moment either of them counts;
    where that is broken off, making the next one ends it."""
    path, new = folder / AVERAGE, folder / NEXT
    if not sealed(new):
        return
    if sealed(path):
        remove(path)
    clear(path)
    if local(path):
        new.rename(path)
        synced(folder)
        return
    # A bucket has no folders to rename.
    for file in (UNFINISHED, *(str(f.relative_to(new)) for f in files_in(new) if f.name != MANIFEST), MANIFEST):
        (path / file).write_bytes(b"" if file == UNFINISHED else (new / file).read_bytes())
    (path / UNFINISHED).unlink()
    remove(new)
