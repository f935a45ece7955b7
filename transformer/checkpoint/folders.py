"""Changes to checkpoint folders: clear the path of a new one, rename, remove, replace the average."""

from __future__ import annotations

import itertools
import logging
import os

from etils import epath

from transformer.checkpoint.layout import AVERAGE, NEXT, unfinished
from transformer.files import MANIFEST, UNFINISHED, files_in, local, sealed, synced, writing

log = logging.getLogger("transformer")


def clear(path: epath.Path) -> None:
    """Clear the path of a new checkpoint: remove an unfinished one there, and rename anything else.

    Other content may be valuable, such as complete arrays without a manifest, which may be an incomplete copy.
    """
    if unfinished(path):
        remove(path)
    elif path.exists():
        set_aside(path)


def set_aside(path: epath.Path) -> None:
    """Rename a folder that is not a valid checkpoint to `<name>.damaged`; keep all of its content."""
    others = (path.with_name(f"{path.name}.damaged{'' if n == 1 else f'-{n}'}") for n in itertools.count(1))
    aside = next(other for other in others if not other.exists())
    with writing(path):
        path.rename(aside)
    log.warning("%s is kept as %s", path, aside.name)


def remove(path: epath.Path) -> None:
    """Remove a checkpoint. If the process dies during that, the rest counts as unfinished."""
    if os.path.islink(path):  # remove only the link, since what it points to belongs to someone else
        return path.unlink()
    if sealed(path):
        (path / MANIFEST).replace(path / UNFINISHED)
    for inside in path.iterdir():
        if inside.name != UNFINISHED:
            inside.rmtree()
    path.rmtree()


def replace_average(folder: epath.Path) -> None:
    """Replace the old average by the new one, if the new one is complete.

    At each moment one of the two is valid. If the process dies during that, the next call completes the replacement.
    """
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
    # A bucket cannot rename folders: copy the files.
    for file in (UNFINISHED, *(str(f.relative_to(new)) for f in files_in(new) if f.name != MANIFEST), MANIFEST):
        (path / file).write_bytes(b"" if file == UNFINISHED else (new / file).read_bytes())
    (path / UNFINISHED).unlink()
    remove(new)
