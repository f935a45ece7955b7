"""Write the folder of a model for another library's `from_pretrained`. Every file is read back and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from transformer.tools.hf.names import Arrays


def write(path: Path, content: Any) -> None:
    """Write bytes, or anything else as JSON. Raises `OSError` if the file then has other content."""
    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    path.write_bytes(content)
    if path.read_bytes() != content:
        raise OSError(f"{path.name} does not hold what was written")


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file. Raises `OSError` if the file then has other content."""
    from safetensors.numpy import save

    # Not `save_file`: the package encodes file names in UTF-8, whatever the locale.
    write(path, save(dict(arrays), metadata={"format": "pt"}))
    back = read_arrays(path)
    if not all(np.array_equal(back[name], x) for name, x in arrays.items()):
        raise OSError(f"{path.name} does not hold what was written")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file."""
    from safetensors.numpy import load

    return load(path.read_bytes())
