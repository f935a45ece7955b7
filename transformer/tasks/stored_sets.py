"""Development and test sets as files in the workdir, so that a copied workdir can be scored.

An index in workdir/sets has, for each set, its name, what else is needed to read it, and the sha256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from transformer.config import UserError
from transformer.files import path_of, refuse_links, replace, writing
from transformer.streams import to_json
from transformer.tasks.sets import NoSet

log = logging.getLogger("transformer")


class StoredSet(NamedTuple):
    """A development or test set."""

    entry: Mapping[str, Any]
    """What the index says of it, "name" among it."""
    files: Mapping[str, bytes]
    """Name of each file -> its content."""


def write(folder: epath.Path, index: str, sets: Mapping[str, StoredSet | None]) -> None:
    """Write sets, named "dev" or "test", into `folder`/sets; None = there is no such set."""
    known: dict[str, Any] = {}
    refuse_links(folder / "sets")
    for kind, one in sets.items():
        if one is None:
            continue
        for name, content in one.files.items():
            path = folder / "sets" / name
            with writing(path):
                changed = path.exists() and path.read_bytes() != content
            if changed:
                log.warning("%s is written anew: the %s set has changed, and scores of it don't compare", path, kind)
            replace(path, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in one.files.items()}
        known[kind] = {**one.entry, "files": digests}
    if known:
        replace(folder / "sets" / index, (to_json(known, indent=2) + "\n").encode())


def read(workdir: Any, index: str, option: str, kind: str | None = None) -> tuple[str, StoredSet]:
    """("test", the workdir's test set), or ("dev", its development set) if there is none. `kind`: only this one.

    Raises `NoSet` if there is none, and `UserError` if a file is not as it was written. `option`: what to give instead.
    """
    folder = path_of(workdir) / "sets"
    path = folder / index
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
        wanted = ("test", "dev") if kind is None else (kind,)
        kind = next((one for one in wanted if one in known), None)
        entry = dict(known[kind] if kind else {})
        digests = dict(entry["files"] if kind else {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"cannot be read ({type(error).__name__}: {error})", option) from None
    if kind is None:
        raise NoSet(f"{workdir} has no {' or '.join(wanted)} set; give {option}")
    files = {}
    for name, digest in digests.items():
        path = folder / Path(name).name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror or error})", option) from None
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise _damaged(path, "is not as it was written", option)
    return kind, StoredSet(entry, files)


def _damaged(path: epath.Path, what: str, option: str) -> UserError:
    return UserError(f"{path} {what}; give {option}, or let train.py write it again")
