"""Read and write folders of models of Hugging Face's libraries. Every file written is read back and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer import files
from transformer.config import UserError
from transformer.data.foreign import refuse_other
from transformer.data.vocabularies import json_object
from transformer.tools.hf.names import Arrays

# The types of a safetensors file that are read, in NumPy.
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
_TYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def write(path: Path, content: Any) -> None:
    """Write bytes, or anything else as JSON. Raises `OSError` if the file then has other content."""
    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    files.write_file(path, content)


def write_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, by default with the metadata that transformers asks for. Raises `OSError` if the file
    then has other content."""
    from safetensors.numpy import save

    # Not `save_file`: the package encodes file names in UTF-8, whatever the locale.
    write(path, save(dict(arrays), metadata=dict(metadata or {"format": "pt"})))
    back = read_arrays(path)
    if not all(np.array_equal(back[name], x) for name, x in arrays.items()):
        raise OSError(f"{path.name} does not hold what was written")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; those in bfloat16 become float32, exactly. Raises `UserError` if it is none, or
    if NumPy has no counterpart of a type in it."""
    from safetensors import SafetensorError, deserialize

    content = read(path)
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        refuse_other(path, "a safetensors file")
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({error}); copy it again") from None
    if other := {name: entry["dtype"] for name, entry in entries if entry["dtype"] not in _TYPES}:
        name, dtype = next(iter(other.items()))
        raise UserError(
            f"{path}: {name} is of type {dtype}, which is not read ({len(other)} of {len(entries)} arrays are of such "
            "types); give a model in float32, float16 or bfloat16"
        )
    return {name: _array(**entry) for name, entry in entries}


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; none if it is no such file, which `read_arrays` refuses."""
    content = read(path)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (ValueError, RecursionError):
        return {}
    return header.get("__metadata__", {}) if isinstance(header, dict) else {}


def _array(data: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    array = np.frombuffer(data, _TYPES[dtype]).reshape(shape)
    # bfloat16 is the upper half of a float32.
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def config_in(folder: str, writer: str = "save_pretrained") -> tuple[Path, dict[str, Any]]:
    """The path of config.json in a folder of a model, and its content. Raises `UserError` if there is none.

    `writer`: what writes such folders, for messages.
    """
    path = files.local_path("the folder of the model", folder)
    if path.is_file():
        raise UserError(f"{folder}: is a file; give the folder of a model (unpack an archive first)")
    if not path.is_dir():
        raise UserError(f"{folder}: no such folder; download a model of the Hub first, and give its folder")
    file = path / "config.json"
    if not file.exists():
        if (path / "adapter_config.json").exists():
            raise UserError(f"{folder}: an adapter; merge it into its model first (merge_and_unload, save_pretrained)")
        raise UserError(f"{folder}: holds no config.json; give the folder that {writer} wrote")
    return file, read_object(file)


def require_arrays(folder: Path, kind: str) -> None:
    """Raise `UserError` if a folder has no arrays that `read_model` reads. Arguments as there."""
    if not any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        raise UserError(_without_arrays(folder, kind))


def read_model(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """The arrays of the model in a folder: of model.safetensors, or of the shards that its index names.

    `kind`: the class of transformers that reads the folder, for messages. Raises `UserError` if they are missing, are
    only there in a format that can run code, or do not fit the index.
    """
    require_arrays(folder, kind)
    if (path := folder / "model.safetensors").exists():
        return read_arrays(path)
    index = folder / "model.safetensors.index.json"
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) and x == Path(x).name for x in places.values()):
        raise UserError(f"{index}: 'weight_map' must name a file of this folder for each array")
    shards = {name: read_arrays(folder / name) for name in sorted(set(places.values()))}
    found = {array: name for name, arrays in shards.items() for array in arrays}
    if wrong := sorted(name for name in places.keys() | found.keys() if places.get(name) != found.get(name)):
        raise UserError(f"{index}: {', '.join(wrong)}: not in the file that 'weight_map' names; copy the folder again")
    return {name: array for arrays in shards.values() for name, array in arrays.items()}


def _without_arrays(folder: Path, kind: str) -> str:
    pickles = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
    if not pickles:
        if other := next((name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).exists()), None):
            return f"{folder}: holds {other}, but no model.safetensors; give the model in PyTorch's form"
        return f"{folder}: holds no model.safetensors; give the folder that save_pretrained wrote"
    return (
        f"{folder}: holds {pickles[0]}, which can run code when it is read, but no model.safetensors; write that with "
        f"transformers: {kind}.from_pretrained(folder).save_pretrained(new_folder)"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` if it is missing or holds none."""
    try:
        return json_object(read(path), path)
    except UserError:
        if path.is_file():
            refuse_other(path, "JSON")  # such as a pointer of Git LFS
        raise


def read(path: Path) -> bytes:
    """The content of a file. Raises `UserError` if it can't be read, or is a pipe or a device, which may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: not a regular file; copy the folder again")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
