"""The cache of compiled programs, on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from transformer.config import Config, DataConfig, UserError, shown


def cache_compiled(folder: str | os.PathLike[str] | None = None) -> Path:
    """Let JAX keep compiled programs in a folder, so that later processes start without compiling them again.

    `folder`: None = `compiled` in $TRANSFORMER_CACHE or ~/.cache/transformer, where the commands of this package keep
    theirs. Call it before anything is compiled. Returns the folder. Raises `UserError` if it cannot be written to.
    """
    import jax

    from transformer.data.folder import writable_cache_dir

    if folder is not None and not (isinstance(folder, (str, os.PathLike)) and os.fspath(folder)):
        raise UserError(f"folder = {shown(folder)}: give a path, or None for the folder of the commands")
    data = Config().data if folder is None else DataConfig(cache_dir=os.fspath(folder))
    with writable_cache_dir(data) as parent:
        path = parent / "compiled" if folder is None else parent
        try:
            path.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=path):  # JAX would warn at each program that it can't write
                pass
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; give another folder") from None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return path
