"""The local cache folder: generated corpora, tokenizers and token stores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.config import DataConfig, LabelledConfig, PretrainConfig, TextConfig, UserError, shown
from transformer.files import local


def cache_dir(config: DataConfig | TextConfig | PretrainConfig | LabelledConfig) -> Path:
    """The path of the cache folder, which may not exist yet. Raises `UserError` if the path can't be used."""
    folder = config.cache_dir or os.environ.get("TRANSFORMER_CACHE") or "~/.cache/transformer"
    named = "data.cache_dir" if config.cache_dir else "TRANSFORMER_CACHE"
    if not local(folder) or "\0" in folder:
        raise UserError(f"{named} = {shown(folder)}: the cache must be a local folder")
    try:
        folder.encode()
        return Path(folder).expanduser()
    except UnicodeEncodeError:
        raise UserError(
            f"the cache would be in {folder}, but JAX needs a name in valid UTF-8; rename the folder, or set "
            "TRANSFORMER_CACHE to another one"
        ) from None
    except RuntimeError:  # HOME is not set, and the system has no entry for this user id
        raise UserError(
            f"the cache would be in {folder}, but your home folder is not known; set HOME, or TRANSFORMER_CACHE to a "
            "folder"
        ) from None


@contextlib.contextmanager
def writable_cache_dir(config: DataConfig | TextConfig | PretrainConfig | LabelledConfig) -> Iterator[Path]:
    """The cache folder, created if missing, for a block that writes to it. An OSError becomes a `UserError`."""
    folder = cache_dir(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        named = "data.cache_dir" if config.cache_dir else "TRANSFORMER_CACHE"
        where, why = error.filename or folder, error.strerror or error
        raise UserError(
            f"{where}: {why}; the cache in {folder} must be writable and have room: mend it, or set {named} to another"
        ) from error


def check_cache(config: Any) -> None:
    """Raise `UserError` if a run with this config can't write to its cache folder."""
    with writable_cache_dir(config.data):
        pass
