"""An open checkpoint: its files and parameters, its damage, and whether a run can be resumed from it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import jax
from etils import epath
from jax.sharding import Sharding

from transformer.checkpoint.arrays import Arrays, shapes_of, with_sharding
from transformer.checkpoint.layout import AVERAGE
from transformer.config import Config, UserError, conflicts, from_json
from transformer.files import MANIFEST, damage, digest_of, manifest, sealed
from transformer.judging import check_progress, rank, upgraded
from transformer.memory import OutOfMemory, out_of_memory, ran_out
from transformer.model import Model, Params, build
from transformer.model.functional import finite

T = TypeVar("T")
_DAMAGED = "this checkpoint is damaged; choose another with --checkpoint (if the command has it), or remove its folder"


class Removed(UserError):
    """A checkpoint was removed or replaced while it was in use."""


def again(read: Callable[[], T]) -> T:
    """Call `read` until it does not raise `Removed`, up to 21 times, and return its result."""
    for _ in range(20):
        with contextlib.suppress(Removed):
            return read()
        # A failed read of Orbax logs a traceback when it is garbage-collected. In CPython 3.11 this must not happen
        # while code is being parsed, as tyro does. So collect it now.
        gc.collect()
    return read()


class Checkpoint:
    """A sealed checkpoint, with the manifest that it had when it was opened.

    Every file is compared with this manifest when it is read. Reading raises `UserError` if a file is damaged, and
    `Removed` if the checkpoint was removed or replaced meanwhile.
    """

    def __init__(self, name: int | str, path: epath.Path, arrays: Arrays):
        """`arrays`: the `Arrays` of the folder of checkpoints. Raises `Removed` if `path` has no manifest."""
        self.name, self.path, self._arrays = name, path, arrays
        try:
            self._manifest = (path / MANIFEST).read_bytes()
        except OSError as error:
            if not sealed(path):
                raise Removed(
                    f"{path} was removed meanwhile, for example by training, which keeps train.keep_last checkpoints; "
                    "run the command again"
                ) from None
            raise UserError(f"{path / MANIFEST} cannot be read ({error}): {_DAMAGED}") from None

    @property
    def digest(self) -> str:
        """sha256 of the manifest. It identifies the content of the whole checkpoint."""
        return hashlib.sha256(self._manifest).hexdigest()

    @cached_property
    def config(self) -> Config:
        return from_json(self._json("config.json"), str(self.path / "config.json"))

    @cached_property
    def progress(self) -> dict[str, Any]:
        """The content of progress.json: 'step', 'vocab_size', the scores (see transformer/judging.py), ..."""
        progress = json.loads(self._json("progress.json"))
        numbers = [progress.get(name) for name in ("step", "vocab_size")] if isinstance(progress, dict) else [None]
        if any(type(number) is not int for number in numbers) or not isinstance(progress.get("run"), str | None):
            raise UserError(f"{self.path / 'progress.json'} was not written by this program: {_DAMAGED}")
        return progress

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """The progress, in the current format, if the checkpoint has a finite score; else None."""
        progress = upgraded(self.progress, lambda: self.config)
        if "judged" not in progress:  # such as an average
            return None
        try:
            check_progress(progress)
            return progress if rank(progress, progress["judged"]) else None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            where, why = self.path / "progress.json", f"{type(error).__name__}: {error}"
            raise UserError(f"{where} was not written by this program ({why}): {_DAMAGED}") from None

    @property
    def model(self) -> Model:
        return build(self.config.model.with_vocabulary(self.progress["vocab_size"]))

    def params(self, sharding: Sharding | None = None) -> Params:
        """The parameters, with this sharding; by default on the first device."""
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self.restore({"params": with_sharding(self.model.abstract_params, sharding)})["params"]

    def finite_params(self) -> Params:
        """The parameters, for conversion or export. Raises `UserError` if some are not finite."""
        params = self.params()
        if not finite(params):
            raise UserError(f"{self.path} holds parameters that are not finite; choose another with --checkpoint")
        return params

    @cached_property
    def _listed(self) -> dict[str, dict[str, Any]]:
        """Map each file that the manifest names to its size and sha256. Raises `UserError` if it is damaged."""
        try:
            return manifest(self.path, self._manifest)
        except ValueError as error:
            raise UserError(f"{self.path / MANIFEST} is not as it was written ({error}): {_DAMAGED}") from None

    def has(self, name: str) -> bool:
        """Whether the manifest names this file, or the folder holds it. If only one is so, `file` raises."""
        return name in self._listed or (self.path / name).exists()

    def file(self, name: str) -> bytes:
        """The content of one of the files beside the arrays. Raises `UserError` if it is missing or damaged."""
        path, entry = self.path / name, self._listed.get(name)
        if not self.has(name):
            raise UserError(f"{self.path} holds no {name}; choose another checkpoint or workdir")
        try:
            content = path.read_bytes()
        except OSError as error:
            self.require_unchanged()
            raise UserError(f"{path} cannot be read ({error}): {_DAMAGED}") from None
        if entry != digest_of(content):
            self.require_unchanged()
            raise UserError(f"{path} is not as it was written: {_DAMAGED}")
        return content

    def files(self) -> dict[str, bytes]:
        """Map the name of each file beside the arrays, except progress.json, to its content."""
        names = [name for name in self._listed if "/" not in name and name != "progress.json"]
        return {name: self.file(name) for name in names}

    def same_run(self, other: Checkpoint) -> bool:
        """Whether both belong to one run: `run` in their progress and the files of the task are the same.

        What one of them lacks, as earlier versions did not save it, is not compared.
        """
        runs = {checkpoint.progress.get("run") for checkpoint in (self, other)} - {None}
        ours, theirs = (manifest(checkpoint.path, checkpoint._manifest) for checkpoint in (self, other))
        files = [name for name in ours.keys() & theirs.keys() if "/" not in name]
        changing = ("config.json", "progress.json")
        return len(runs) < 2 and all(ours[name] == theirs[name] for name in files if name not in changing)

    def _json(self, name: str) -> str:
        content = self.file(name)
        try:
            text = content.decode()
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} cannot be read ({error}): {_DAMAGED}") from None
        return text

    def require_unchanged(self) -> None:
        """Raise `Removed` if the checkpoint was removed or replaced since it was opened."""
        try:
            same = (self.path / MANIFEST).read_bytes() == self._manifest
        except OSError:
            same = sealed(self.path)  # the manifest exists, but cannot be read at the moment
        if not same:
            what = "replaced" if sealed(self.path) else "removed"
            raise Removed(
                f"{self.path} was {what} meanwhile, for example by training or averaging; run the command again"
            )

    def damage(self) -> str | None:
        """How the files differ from the manifest, in words, or None; see `files.damage`."""
        return damage(self.path)

    def restore(self, items: Mapping[str, Any], *, verified: bool = False) -> dict[str, Any]:
        """Restore the trees named in `items`, each with the shapes, types and shardings of its abstract tree.

        `items` must include 'params'. Raises `UserError` if the files are damaged (not checked if `verified`) or the
        parameters do not fit.
        """
        wrong = None if verified else self.damage()
        if wrong:
            self.require_unchanged()
            raise UserError(f"{wrong}: {_DAMAGED}")
        try:
            # Compare shapes here for a clear one-line error: Orbax fails with several tracebacks.
            if wrong := self.misfit(items["params"]):
                raise UserError(wrong)
            restored = self._arrays.restore(self.path, items)
        except UserError:
            raise
        except Exception as error:  # Orbax raises plain `Exception`, among others
            self.require_unchanged()
            _raise_if_out_of_memory(error, self.path)
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.path} cannot be restored: {reason}") from error
        if self.name == AVERAGE:  # an average may be replaced during the read; a step may only be removed
            self.require_unchanged()
        return restored

    def misfit(self, params: Any) -> str | None:
        """How the names or shapes of its parameters differ from these abstract ones, in words, or None.

        Raises `OSError` or `UserError` if the parameters cannot be read.
        """
        try:
            stored = self._arrays.param_shapes(self.path)
        except OSError:
            self.require_unchanged()
            raise
        except Exception as error:  # Orbax raises plain `Exception`, among others
            self.require_unchanged()
            _raise_if_out_of_memory(error, self.path)
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.path} cannot be read ({why}): {_DAMAGED}") from None
        expected = shapes_of(params)
        for path in expected | stored:
            if stored.get(path) != expected.get(path):
                return (
                    f"{self.path} does not fit the model: {path} is {stored.get(path, 'missing')} in the checkpoint "
                    f"and {expected.get(path, 'missing')} in the model"
                )
        return None

    def unfit(self, config: Any, params: Any, files: Mapping[str, bytes]) -> str | None:
        """Why a run with this config, abstract parameters and files cannot resume from this checkpoint, or None.

        Call it for undamaged checkpoints. The reason is then another run, or another version of this program.
        """
        path = self.path
        try:
            if changed := conflicts(self.config, config):
                return f"{path} belongs to another run: different {', '.join(changed)}"
            _ = self.evaluation
            step = self.progress.get("step")
            if not path.name.startswith(f"{step:08d}") or not (path / "state" / "optimizer").exists():
                return f"{path} is not a checkpoint that training can resume from"
            for name, content in files.items():
                if self.has(name) and self.file(name) != content:
                    return f"{path} belongs to another run: its {name} differs from that of {path.parent.parent}"
            return self.misfit(params)
        except OutOfMemory:
            raise
        except UserError as error:
            return str(error)
        except OSError as error:
            where, why = error.filename or path, error.strerror or error
            raise UserError(f"{where} cannot be read ({why}); fix this, then run the same command again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return (
                f"{path} was not written by this program ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            )


def _raise_if_out_of_memory(error: Exception, path: epath.Path) -> None:
    """Raise `UserError` if `error` means that memory ran out. The checkpoint itself may be undamaged."""
    if ran_out(error):
        raise out_of_memory(error, f"{path} was not read; end other programs, or raise the limit (ulimit -v)") from None
