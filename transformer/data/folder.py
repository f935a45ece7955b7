"""The local folder of what is made once from a run's text: generated corpora, tokenizers and tokens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from transformer.config import DataConfig, UserError


def cache_dir(config: DataConfig) -> Path:
    """The local folder of generated corpora, tokenizers and tokenised text (not created here)."""
    folder = config.cache_dir or os.environ.get("TRANSFORMER_CACHE") or "~/.cache/transformer"
    try:
        folder.encode()
        return Path(folder).expanduser()
    except UnicodeEncodeError:
        raise UserError(
            f"the cache would be in {folder}, whose name is not valid UTF-8, as JAX asks of it; rename it, or set "
            "TRANSFORMER_CACHE to another folder"
        ) from None
    except RuntimeError:  # HOME is not set, and the system knows no user of this number
        raise UserError(
            f"the cache would be in {folder}, but your home folder is not known; set HOME, or TRANSFORMER_CACHE to a "
            "folder"
        ) from None


@contextlib.contextmanager
def writable_cache_dir(config: DataConfig) -> Iterator[Path]:
    """The cache folder, made if need be, for a block that writes there; what the disk refuses is told in one line."""
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
