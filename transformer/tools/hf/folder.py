"""The folder of a model for another library's `from_pretrained`: files that are read back, arrays as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import UserError
from transformer.tools.hf.names import Arrays


def require_safetensors(what: str) -> None:
    """Raise `UserError` where the package is missing that `what` needs."""
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError:
        raise UserError(f"{what} needs safetensors: pip install 'transformer[export]'") from None


def new(out: str) -> Path:
    """The path of a folder to write. Raises `UserError` where it holds something."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out}: there is something already; name a new folder")
    return folder


def write(path: Path, content: Any) -> None:
    """Write bytes, or anything else as JSON. Raises `OSError` where they can't be read back."""
    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    path.write_bytes(content)
    if path.read_bytes() != content:
        raise OSError(f"{path.name} does not hold what was written")


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file. Raises `OSError` where it can't be read back."""
    from safetensors.numpy import save

    # In memory: the package opens its files by UTF-8 names, whatever the locale.
    write(path, save(dict(arrays), metadata={"format": "pt"}))
    back = read_arrays(path)
    if not all(np.array_equal(back[name], x) for name, x in arrays.items()):
        raise OSError(f"{path.name} does not hold what was written")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file."""
    from safetensors.numpy import load

    return load(path.read_bytes())
