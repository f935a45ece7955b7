"""A folder with the parameters of any of our models under our names, which nothing but safetensors is needed to read.

    model.safetensors   the parameters, such as decoder/layers/0/self_attention/query; float32
    config.json         the config of the run, as in a checkpoint
    progress.json       step, scores and digests, as in a checkpoint
    tokenizer.model ... the other files of the checkpoint

`import_folder` makes a workdir of it again, with the same bits. The header of model.safetensors lists the other files,
and has a digest of the parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints, best_seed
from transformer.config import UserError, from_json
from transformer.files import local_path, new_folder, path_of, require_new, writing
from transformer.model import build
from transformer.packages import require
from transformer.tools.hf.fields import checked
from transformer.tools.hf.folder import config_in, metadata_of, read, read_arrays, read_object, write, write_arrays
from transformer.tools.hf.names import flat, mismatches, nested, refuse, unusable
from transformer.tools.model_card import About, about, files_about
from transformer.tools.new_workdir import new_workdir

FORMAT = "transformer"
"""`format` in the header of model.safetensors."""
_USE = """
Needs `pip install safetensors`, and jax for the last lines alone.

```python
import json

from safetensors.numpy import load_file

params = load_file("model.safetensors")  # name -> float32 array
config = json.load(open("config.json"))["model"]
for name, array in params.items():
    print(name, array.shape)
```

The last axes of a matrix are its outputs: `x @ w`. `query`, `key` and `value` have the shape (width, heads, size of a
head), `output` (heads, size of a head, width). With jax, as a nested dict, which the package's `model.apply` takes:

```python
import jax.numpy as jnp

nested = {}
for name, array in params.items():
    node, (*folders, last) = nested, name.split("/")
    for folder in folders:
        node = node.setdefault(folder, {})
    node[last] = jnp.asarray(array)
```

`python -m transformer import FOLDER runs/new --from safetensors` makes a workdir of this folder, with the same bits.
"""


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    params: dict[str, np.ndarray]
    files: dict[str, Any]
    about: About


def export(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint of any task as such a folder. `checkpoint` as in `transformer.load`.

    Raises `UserError` if safetensors is missing, if `out` is not a new or empty folder, and if a parameter is not
    finite.
    """
    require("export --to safetensors", "safetensors")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(best_seed(workdir)).read(checkpoint, _open)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in opened.files.items()}
    with writing(folder), new_folder(folder) as building:
        for name, content in (opened.files | files_about(opened.about, "safetensors", _USE)).items():
            write(building / name, content)
        metadata = {"format": FORMAT, "files": json.dumps(digests), "arrays": _digest_of(opened.params)}
        write_arrays(building / "model.safetensors", opened.params, metadata)
    return folder


def _open(opened: Checkpoint) -> _Opened:
    files = opened.files() | {"progress.json": opened.file("progress.json")}
    return _Opened(flat(opened.finite_params()), files, about(opened))


def import_folder(folder: str, out: str) -> None:
    """Write a workdir with the model and the files of a folder that `export` wrote.

    Raises `UserError` if `out` is not a new or empty folder, and if a file or an array is missing, unknown, or not as
    it was written.
    """
    require("import --from safetensors", "safetensors")
    require_new(path_of(out))
    file, _ = config_in(folder, "export --to safetensors")
    arrays = file.with_name("model.safetensors")
    if not arrays.exists():
        raise UserError(f"{folder}: holds no model.safetensors; give the folder that export --to safetensors wrote")
    header = metadata_of(arrays)
    if header.get("format") != FORMAT:
        read_arrays(arrays)  # raises if it is damaged, or no such file at all
        raise UserError(
            f"{arrays}: not written by export --to safetensors, but with format = {header.get('format')!r}; give "
            "another --from, such as hf-gpt2 or hf-bert"
        )
    files = {name: _unchanged(file.with_name(name), digest) for name, digest in _listed(arrays, header).items()}
    config = from_json(files.pop("config.json").decode(), str(file))
    progress = _progress_in(file.with_name("progress.json"))
    del files["progress.json"]
    model = build(checked(config.model.with_vocabulary(progress["vocab_size"]), file))
    params, expected = read_arrays(arrays), flat_shapes(model)
    refuse(str(arrays), mismatches(params, expected) + unusable(params))
    if header.get("arrays", digest := _digest_of(params)) != digest:  # earlier versions wrote none
        raise UserError(f"{arrays}: its numbers are not as they were written; copy the folder again")
    kept = {name: value for name, value in progress.items() if name in ("step", "vocab_size") or name.startswith("hf_")}
    kept["averaged_steps"] = progress["averaged_steps"]
    new_workdir(out, nested(params), config, progress=kept, files=files)


def flat_shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter of a model."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(model.abstract_params)
    return [("/".join(key.key for key in path), leaf.shape) for path, leaf in leaves]


def _digest_of(params: Mapping[str, np.ndarray]) -> str:
    """sha256 of the names and numbers of all parameters, whatever their order."""
    digest = hashlib.sha256()
    for name, array in sorted(params.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _progress_in(path: Path) -> dict[str, Any]:
    """The content of progress.json. Raises `UserError` if a number that is needed is missing or none."""
    progress = read_object(path)
    steps = progress.setdefault("averaged_steps", [progress.get("step")])
    numbers = [(name, progress.get(name)) for name in ("step", "vocab_size")]
    numbers += [("averaged_steps", x) for x in (steps if isinstance(steps, list) else [steps])]
    if wrong := [f"{name} = {x!r}: must be a whole number" for name, x in numbers if type(x) is not int]:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    return progress


def _listed(arrays: Path, header: Mapping[str, str]) -> dict[str, str]:
    """Name and sha256 of the other files of the folder. Raises `UserError` if the header does not list them."""
    try:
        listed = json.loads(header.get("files", ""))
    except (ValueError, RecursionError):
        listed = None
    needed = {"config.json", "progress.json"}
    if not isinstance(listed, dict) or not all(isinstance(digest, str) for digest in listed.values()):
        raise UserError(f"{arrays}: 'files' in its header lists no files; copy the folder again")
    if outside := [name for name in listed if not name or name != Path(name).name]:
        raise UserError(f"{arrays}: 'files' in its header names {outside[0]!r}, which is not a file of this folder")
    if lacking := needed - listed.keys():
        raise UserError(f"{arrays}: 'files' in its header lacks {min(lacking)}; copy the folder again")
    return listed


def _unchanged(path: Path, digest: str) -> bytes:
    """The content of a file. Raises `UserError` if it is missing, or not as it was written."""
    if not path.exists():
        raise UserError(f"{path}: missing; copy the folder again")
    if hashlib.sha256(content := read(path)).hexdigest() != digest:
        raise UserError(f"{path}: not as it was written; copy the folder again")
    return content
