"""Asynchronous saving: a thread writes a checkpoint, reads it back, then seals or removes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from transformer.checkpoint.arrays import Arrays, shapes_of
from transformer.checkpoint.folders import remove
from transformer.checkpoint.layout import AVERAGE, interrupted
from transformer.config import UserError, from_json, shown
from transformer.files import seal, writing
from transformer.judging import check_progress
from transformer.memory import out_of_memory, ran_out
from transformer.phases import phase
from transformer.streams import to_json

# Entries that `load`, inference and a resumed run require.
NEEDED = {"progress": {"step", "vocab_size"}, "files": {"config.json"}, "items": {"params"}}
GOES_ON = "then run the same command again: it goes on from the last complete checkpoint"


def require_name(name: Any) -> None:
    """Raise `UserError` unless this is a step, or a string that can be the name of a folder."""
    if not (type(name) is int and 0 <= name < 10**8) and not (isinstance(name, str) and _is_file_name(name)):
        raise UserError(f"a checkpoint cannot be called {shown(name)}; give its step, or a name without /")


def require_needed(name: Any, given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ValueError` if a checkpoint with this name and content would lack an entry of `NEEDED`, or would have a
    name, file or number that readers do not accept."""
    require_name(name)
    for what, mapping in given.items():
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{what} of a checkpoint is a {type(mapping).__name__}: give a dict")
    if wrong := [leaf for leaf in jax.tree.leaves(dict(given["items"])) if not hasattr(leaf, "shape")]:
        raise ValueError(f"the items of a checkpoint hold {shown(wrong[0])}: give trees of arrays")
    for path, node in jax.tree.leaves_with_path(
        dict(given["items"]), is_leaf=lambda node: isinstance(node, dict) and not node
    ):
        if path and isinstance(node, dict):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the items of a checkpoint hold an empty dict, {where}, which is not stored; leave it out"
            )
    try:
        to_json(dict(given["progress"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the progress of a checkpoint can't be written as JSON ({error})") from None
    for file, content in given["files"].items():
        if not isinstance(file, str) or not _is_file_name(file) or not isinstance(content, bytes):
            raise ValueError(f"file {shown(file)} of a checkpoint: give a name without / and its content as bytes")
    if written := {"manifest.json", "progress.json"} & given["files"].keys():
        raise ValueError(f"file {min(written)!r} of a checkpoint is written by `save` itself; leave it out")
    if "config.json" in given["files"]:
        from_json(given["files"]["config.json"].decode(errors="replace"), "config.json")
    if not isinstance(given["progress"].get("run"), str | None):
        raise ValueError(f"progress['run'] = {shown(given['progress']['run'])}: give a string")
    for key in NEEDED["progress"] & given["progress"].keys():
        if type(number := given["progress"][key]) is not int:
            raise ValueError(f"progress[{key!r}] = {shown(number)}: give an int")
    if type(name) is int and given["progress"].get("step", name) != name:
        raise ValueError(f"checkpoint {name} cannot be of step {given['progress']['step']}; give its own step")
    for key, least in (("step", 0), ("vocab_size", 1)):
        if given["progress"].get(key, least) < least:
            raise ValueError(f"progress[{key!r}] = {given['progress'][key]}: must be at least {least}")
    if "judged" in given["progress"]:
        try:
            check_progress(given["progress"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"progress can't be read with this 'judged' ({why}); leave it out, or give all") from None
    if lacking := [f"{name} in {where}" for where, names in NEEDED.items() for name in names - given[where].keys()]:
        raise ValueError(f"a checkpoint cannot be read without {', '.join(sorted(lacking))}; pass these to save, too")
    if isinstance(name, str) and name not in (AVERAGE, interrupted(given["progress"]["step"])):
        raise ValueError(f"no checkpoint is found by the name {shown(name)}; give its step, or {AVERAGE!r}")


def _is_file_name(name: str) -> bool:
    try:
        return name not in ("", ".", "..") and not {*b"/\0"} & {*os.fsencode(name)}
    except UnicodeEncodeError:  # half a surrogate pair
        return False


class Saving:
    """A save in progress.

    A thread waits until the arrays are written and reads them back. It then waits for the decision whether the
    checkpoint is good, and seals or removes it.
    """

    def __init__(
        self,
        path: epath.Path,
        arrays: Arrays,
        files: Mapping[str, bytes],
        *,
        good: bool,
        check: Callable[[], None],
        after_sealing: Callable[[bool], None],
    ):
        """`good`: the checkpoint is certainly good, so no decision is needed. `check`: called before the checkpoint is
        sealed or removed. `after_sealing`: called then, with whether it is certainly good."""
        self._path, self._arrays, self._files = path, arrays, files
        self._check, self._after_sealing = check, after_sealing
        self._good, self._certain, self._decided = True, good, threading.Event()
        if good:
            self._decided.set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._finish, name="checkpoint")

    def start(self, items: Mapping[str, Any]) -> None:
        """Start writing. Returns once the arrays are copied off the devices."""
        self._shapes = {k: shapes_of(tree) for k, tree in items.items()}
        with writing(self._path):
            self._arrays.save(self._path, items)
        self._thread.start()

    def confirm(self) -> None:
        """Decide that the checkpoint is good, so that it is sealed."""
        if not self._decided.is_set():
            self._certain = True
            self._decided.set()

    def reject(self) -> None:
        """Decide that the checkpoint is not good, so that it is removed. No effect after `confirm`."""
        if not self._decided.is_set():
            self._good = False
            self._decided.set()

    def join(self) -> None:
        """Wait until the save has ended. Without a decision, the checkpoint is sealed."""
        self._decided.set()
        self._thread.join()

    def raise_failure(self) -> None:
        """Raise `UserError` if the save failed."""
        if (failure := self._failure) is None:
            return
        self._check()  # if the lock was lost, this is the cause of the failure: raise that
        if isinstance(failure, UserError):
            raise failure
        folder = self._path.parent
        if ran_out(failure):
            raise out_of_memory(failure, f"no checkpoint was saved in {folder}; {GOES_ON}") from failure
        raise UserError(
            f"saving a checkpoint under {folder} failed ({failure}); make room or mend the folder; {GOES_ON}"
        ) from failure

    def _finish(self) -> None:
        try:
            with phase(f"saving {self._path.name}"):
                self._arrays.wait()
                if jax.process_index():
                    return
                for file, content in self._files.items():
                    (self._path / file).write_bytes(content)
                self._read_back()
                self._decided.wait()
                self._check()
                if not self._good:
                    return remove(self._path)
                seal(self._path)
            self._after_sealing(self._certain)
        except BaseException as error:
            self._failure = error

    def _read_back(self) -> None:
        """Read arrays and files back. Raises `ValueError` if they differ from what was saved."""
        self._arrays.read_back(self._path, self._shapes)
        for file, content in self._files.items():
            if (self._path / file).read_bytes() != content:
                raise ValueError(f"{self._path / file} does not hold what was saved")
