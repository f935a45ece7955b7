"""Arrays of checkpoints: write, read back, restore. The only file that uses Orbax."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from transformer.config import UserError
from transformer.files import local


class Arrays:
    """Reads and writes the arrays of all checkpoints in a folder."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._orbax_folder = _folder_for_orbax(self, folder)

    def save(self, path: epath.Path, items: Mapping[str, Any]) -> None:
        """Start writing trees of arrays to the checkpoint at `path`. Returns once they are copied off the devices."""
        trees = ocp.args.Composite(**{k: ocp.args.StandardSave(tree) for k, tree in items.items()})
        self._orbax.save(self._orbax_path(path) / "state", args=trees)

    def wait(self) -> None:
        """Wait until everything is written. Raises Orbax's error if that failed."""
        self._orbax.wait_until_finished()

    def read_back(self, path: epath.Path, shapes: Mapping[str, dict[str, tuple[int, ...]]]) -> None:
        """Read the saved arrays. Raises `ValueError` if arrays are missing or have other shapes than `shapes`.

        With several processes the arrays may exceed the memory of one process: then read only their metadata.
        """
        handler = ocp.PyTreeCheckpointHandler()
        for item, expected in shapes.items():
            saved = self._orbax_path(path) / "state" / item
            arrays = handler.metadata(saved).tree
            if jax.process_count() == 1:
                arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arrays)
                arrays = handler.restore(saved, args=ocp.args.PyTreeRestore(restore_args=arguments))
            if shapes_of(arrays) != expected:
                raise ValueError(f"{path / 'state' / item} does not hold the arrays that were saved")

    def restore(self, path: epath.Path, items: Mapping[str, Any]) -> dict[str, Any]:
        """Restore the trees named in `items`, each with the shapes, types and shardings of its abstract tree.

        Raises Orbax's errors.
        """
        trees = ocp.args.Composite(**{k: ocp.args.StandardRestore(tree) for k, tree in items.items()})
        restored = self._orbax.restore(self._orbax_path(path) / "state", args=trees)
        return {k: restored[k] for k in items}

    def param_shapes(self, path: epath.Path) -> dict[str, tuple[int, ...]]:
        """Map each parameter's name to its shape in the checkpoint at `path`. Raises Orbax's errors."""
        return shapes_of(ocp.StandardCheckpointHandler().metadata(self._orbax_path(path) / "state" / "params").tree)

    def _orbax_path(self, path: epath.Path) -> epath.Path:
        """The path to give to Orbax for `path`."""
        return self._orbax_folder / path.relative_to(self._folder)


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Map the path of each array of a tree, such as `decoder/layers/0/self_attention/query`, to its shape."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(name, keys)): tuple(leaf.shape) for keys, leaf in leaves}


def with_sharding(abstract: Any, sharding: Any) -> Any:
    """The abstract tree with shardings. `sharding`: one for all leaves, or a tree of shardings."""
    if isinstance(sharding, Sharding):
        sharding = jax.tree.map(lambda _: sharding, abstract)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)


def _folder_for_orbax(arrays: Arrays, folder: epath.Path) -> epath.Path:
    """A path to the folder of checkpoints that Orbax can use.

    Orbax takes [, * and ? in a path for a pattern and \\ for /, and encodes each path as UTF-8, whatever the locale.
    For such a folder, return a link in a temporary folder, which is removed when `arrays` is garbage-collected.
    Raises `UserError` where no such link can be made.
    """
    if _safe_for_orbax(str(folder)):
        return folder
    if not local(folder) or jax.process_count() > 1 or not _safe_for_orbax(tempfile.gettempdir()):
        raise UserError(
            f"{folder.parent}: the path has [, *, ?, \\ or letters that are not UTF-8 in this locale, which is not "
            "possible in a bucket, with several processes, or with such a TMPDIR; rename the workdir"
        )
    beside = tempfile.mkdtemp(prefix="transformer-")
    weakref.finalize(arrays, shutil.rmtree, beside, ignore_errors=True)
    link = epath.Path(beside) / "checkpoints"
    os.symlink(folder, link)
    return link


def _safe_for_orbax(path: str) -> bool:
    """Whether Orbax opens the same file at this path as this program does."""
    try:
        plain = not glob.has_magic(path) and (os.sep != "/" or "\\" not in path)
        return plain and (not local(path) or os.fsencode(path) == path.encode())
    except UnicodeEncodeError:
        return False
