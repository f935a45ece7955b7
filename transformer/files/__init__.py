"""Crash-safe files and folders: atomic writes, whole lines, digests, sealed folders, locks.

A path is a local path, or an etils `epath.Path` in a bucket. A sealed folder holds a `manifest.json` with the size (in
bytes) and the sha256 of each of its files. The manifest is written last: a folder without one is unfinished.
"""

from transformer.files.atomic import append, new_folder, replace, require_new, synced, writing
from transformer.files.caching import ENTRY, cached, digest_once
from transformer.files.compared import compared, write_file
from transformer.files.locks import Lock, unchanged
from transformer.files.paths import (
    files_in,
    local,
    local_path,
    path_of,
    refuse_empty,
    refuse_links,
    refuse_pipe,
    unreadable,
)
from transformer.files.sealing import MANIFEST, UNFINISHED, damage, digest, digest_of, manifest, seal, sealed
from transformer.files.temporaries import owner, sweep, temporary

__all__ = [
    "ENTRY",
    "MANIFEST",
    "UNFINISHED",
    "Lock",
    "append",
    "cached",
    "compared",
    "damage",
    "digest",
    "digest_of",
    "digest_once",
    "files_in",
    "local",
    "local_path",
    "manifest",
    "new_folder",
    "owner",
    "path_of",
    "refuse_empty",
    "refuse_links",
    "refuse_pipe",
    "replace",
    "require_new",
    "seal",
    "sealed",
    "sweep",
    "synced",
    "temporary",
    "unchanged",
    "unreadable",
    "write_file",
    "writing",
]
