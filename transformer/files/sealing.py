"""Sealed folders. Each holds a manifest with the size and the sha256 of its files; the manifest is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformer.config import UserError
from transformer.files.atomic import synced
from transformer.files.compared import write_file
from transformer.files.paths import files_in, local
from transformer.phases import phase

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""Name of the manifest while it is being written. A new folder may hold this file from the start, as a mark."""


def digest(path: Any) -> dict[str, Any]:
    """Size (in bytes) and sha256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            size += len(block)
    return {"size": size, "sha256": sha256.hexdigest()}


def digest_of(content: bytes) -> dict[str, Any]:
    """The `digest` of a file with this content."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sealed(folder: Any) -> bool:
    """Whether a folder has a manifest. Does not check its files; see `damage`."""
    return (folder / MANIFEST).exists()


def seal(folder: Any) -> None:
    """Sync all files of a folder to the disk, then write its manifest."""
    manifest = {str(f.relative_to(folder)): digest(f) for f in files_in(folder) if f != folder / UNFINISHED}
    if local(folder):
        with ThreadPoolExecutor(8) as pool:  # in parallel: the disk handles several syncs at once
            list(pool.map(synced, [folder, *Path(folder).rglob("*")]))
    write_file(folder / UNFINISHED, (json.dumps(manifest, indent=2) + "\n").encode())
    if local(folder):
        synced(folder / UNFINISHED)
    with phase(f"renaming {MANIFEST}"):
        (folder / UNFINISHED).replace(folder / MANIFEST)
    if local(folder):
        for path in (folder, folder.parent):
            synced(path)


def manifest(folder: Any, content: bytes | None = None) -> dict[str, dict[str, Any]]:
    """Map each file of a sealed folder to its size and sha256. Raises `ValueError` if the manifest is damaged.

    `content`: the bytes of the manifest; None = read them.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_bytes() if content is None else content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(entries, dict) or not entries:
        raise ValueError("it names no files")
    for file in entries:
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"it names {file}, which is not in the folder")
    return entries


def damage(folder: Any, digest_of_file: Callable[[Any], dict[str, Any]] | None = None) -> str | None:
    """Compare the files of a sealed folder with its manifest. Return the first difference, in words, or None.

    Raises `UserError` if a file cannot be read at the moment, since its content may be undamaged.
    """
    try:
        for file, expected in manifest(folder).items():
            if not (folder / file).exists():
                return f"{folder / file} is missing"
            if (digest_of_file or digest)(folder / file) != expected:
                return f"{folder / file} is not as it was written"
    except ValueError as error:
        return f"{folder / MANIFEST} is not as it was written ({error})"
    except FileNotFoundError as error:
        return f"{error.filename or folder} is missing"
    except IsADirectoryError as error:
        return f"{error.filename or folder} is a folder"
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise UserError(f"{where} cannot be read ({why}); fix this, then run the same command again") from None
    return None
