"""The arrays of checkpoints: write, read back, restore. The only file that knows Orbax."""

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
    """The arrays of the checkpoints in a folder."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._plain = _plain_name(self, folder)

    def save(self, path: epath.Path, items: Mapping[str, Any]) -> None:
        """Start writing the trees of the checkpoint at `path`; returns once they are copied off the devices."""
        trees = ocp.args.Composite(**{k: ocp.args.StandardSave(tree) for k, tree in items.items()})
        self._orbax.save(self._orbax_path(path) / "state", args=trees)

    def wait(self) -> None:
        """Wait until all is written; raises if that failed."""
        self._orbax.wait_until_finished()

    def read_back(self, path: epath.Path, shapes: Mapping[str, dict[str, tuple[int, ...]]]) -> None:
        """Read what was saved, as a reader does. Raises `ValueError` where arrays are missing or of other shapes.

        Several processes save more than one of them can hold: there the arrays' descriptions alone are read.
        """
        handler = ocp.PyTreeCheckpointHandler()
        for item, expected in shapes.items():
            at = self._orbax_path(path) / "state" / item
            there = handler.metadata(at).tree
            if jax.process_count() == 1:
                arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
                there = handler.restore(at, args=ocp.args.PyTreeRestore(restore_args=arguments))
            if shapes_of(there) != expected:
                raise ValueError(f"{path / 'state' / item} does not hold the arrays that were saved")

    def restore(self, path: epath.Path, items: Mapping[str, Any]) -> dict[str, Any]:
        """The trees named in `items`, each as its abstract tree (shapes, types, shardings) says. Raises what Orbax
        raises."""
        trees = ocp.args.Composite(**{k: ocp.args.StandardRestore(tree) for k, tree in items.items()})
        restored = self._orbax.restore(self._orbax_path(path) / "state", args=trees)
        return {k: restored[k] for k in items}

    def param_shapes(self, path: epath.Path) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters of the checkpoint at `path`, by their names. Raises what Orbax raises."""
        return shapes_of(ocp.StandardCheckpointHandler().metadata(self._orbax_path(path) / "state" / "params").tree)

    def _orbax_path(self, path: epath.Path) -> epath.Path:
        """The path by which Orbax finds what lies at `path`."""
        return self._plain / path.relative_to(self._folder)


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a tree, by its path, such as `decoder/layers/0/self_attention/query`."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(name, keys)): tuple(leaf.shape) for keys, leaf in leaves}


def with_sharding(abstract: Any, sharding: Any) -> Any:
    """The abstract tree with one sharding for all leaves, or a tree of them."""
    if isinstance(sharding, Sharding):
        sharding = jax.tree.map(lambda _: sharding, abstract)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)


def _plain_name(arrays: Arrays, folder: epath.Path) -> epath.Path:
    """A path to the folder of checkpoints for Orbax, which takes [, * and ? in a path for a pattern and \\ for /, and
    writes each path as UTF-8, whatever the locale.

    Where the folder's own path is not so it is a link in a temporary folder, which goes with `arrays`.
    """
    if _means_itself(str(folder)):
        return folder
    if not local(folder) or jax.process_count() > 1 or not _means_itself(tempfile.gettempdir()):
        raise UserError(
            f"{folder.parent}: in a bucket, with several processes, or with such a TMPDIR, a workdir's path can't have "
            "[, *, ? or \\, nor letters that are not UTF-8 in this locale; rename it"
        )
    beside = tempfile.mkdtemp(prefix="transformer-")
    weakref.finalize(arrays, shutil.rmtree, beside, ignore_errors=True)
    link = epath.Path(beside) / "checkpoints"
    os.symlink(folder, link)
    return link


def _means_itself(path: str) -> bool:
    """Whether Orbax finds by this path what this program does."""
    try:
        plain = not glob.has_magic(path) and (os.sep != "/" or "\\" not in path)
        return plain and (not local(path) or os.fsencode(path) == path.encode())
    except UnicodeEncodeError:
        return False
