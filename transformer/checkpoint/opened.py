"""One checkpoint, opened: its files, its parameters, what is wrong with it, and whether a run can go on from it."""

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
from transformer.memory import OutOfMemory, ran_out, short
from transformer.model import Model, Params, build
from transformer.model.functional import finite

T = TypeVar("T")
_DAMAGED = "this checkpoint is damaged; choose another with --checkpoint, or remove its folder"


class Removed(UserError):
    """A checkpoint that was there is gone, or another one has taken its place."""


def again(read: Callable[[], T]) -> T:
    """What `read` returns, which is called anew while it raises `Removed`."""
    for _ in range(20):
        with contextlib.suppress(Removed):
            return read()
        # Orbax's reads that failed log with a traceback when they are collected. In CPython 3.11 that must not come
        # while code is parsed, as tyro does: now, then.
        gc.collect()
    return read()


class Checkpoint:
    """A sealed checkpoint, pinned to the manifest that it had when it was opened.

    What is read of it is compared with that manifest. Reading raises `UserError` where a file is damaged, and `Removed`
    where the checkpoint has gone meanwhile, or another one has taken its place.
    """

    def __init__(self, name: int | str, path: epath.Path, arrays: Arrays):
        """`arrays`: those of the checkpoints in the same folder."""
        self.name, self.path, self._arrays = name, path, arrays
        try:
            self._sealed = (path / MANIFEST).read_bytes()
        except OSError as error:
            if not sealed(path):
                raise Removed(
                    f"{path} was removed meanwhile, as by training, which keeps train.keep_last checkpoints; run the "
                    "command again"
                ) from None
            raise UserError(f"{path / MANIFEST} cannot be read ({error}): {_DAMAGED}") from None

    @property
    def digest(self) -> str:
        """sha256 of its manifest, and so of all that is in it."""
        return hashlib.sha256(self._sealed).hexdigest()

    @cached_property
    def config(self) -> Config:
        return from_json(self._json("config.json"), str(self.path / "config.json"))

    @cached_property
    def progress(self) -> dict[str, Any]:
        """What was saved beside the arrays: 'step', 'vocab_size', the scores (see transformer/judging.py), ..."""
        progress = json.loads(self._json("progress.json"))
        if not isinstance(progress, dict):
            raise UserError(f"{self.path / 'progress.json'} is not one of this program: {_DAMAGED}")
        return progress

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """The progress, in today's form, if it was evaluated with a finite score; else None."""
        progress = upgraded(self.progress, lambda: self.config)
        if "judged" not in progress:  # as that of an average
            return None
        try:
            check_progress(progress)
            return progress if rank(progress, progress["judged"]) else None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            where, why = self.path / "progress.json", f"{type(error).__name__}: {error}"
            raise UserError(f"{where} is not one of this program ({why}): {_DAMAGED}") from None

    @property
    def model(self) -> Model:
        return build(self.config.model.with_vocabulary(self.progress["vocab_size"]))

    def params(self, sharding: Sharding | None = None) -> Params:
        """The parameters; on the first device unless `sharding` says otherwise."""
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self.restore({"params": with_sharding(self.model.abstract_params, sharding)})["params"]

    def finite_params(self) -> Params:
        """`params`, for who hands them on. Raises `UserError` where some are no finite numbers."""
        params = self.params()
        if not finite(params):
            raise UserError(f"{self.path} holds parameters that are not finite; choose another with --checkpoint")
        return params

    def file(self, name: str) -> bytes:
        """What is in one of the files beside the arrays, as it was written."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            self.require_same()
            raise UserError(f"{path} cannot be read ({error}): {_DAMAGED}") from None
        try:
            wrong = manifest(self.path, self._sealed).get(name) != digest_of(content)
        except ValueError as error:
            raise UserError(f"{self.path / MANIFEST} is not as it was written ({error}): {_DAMAGED}") from None
        if wrong:
            self.require_same()
            raise UserError(f"{path} is not as it was written: {_DAMAGED}")
        return content

    def files(self) -> dict[str, bytes]:
        """The files that were saved beside the arrays, by name, but for progress.json."""
        names = [name for name in manifest(self.path, self._sealed) if "/" not in name and name != "progress.json"]
        return {name: self.file(name) for name in names}

    def _json(self, name: str) -> str:
        content = self.file(name)
        try:
            text = content.decode()
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} cannot be read ({error}): {_DAMAGED}") from None
        return text

    def require_same(self) -> None:
        """Raise `Removed` if the checkpoint has gone since it was opened, or another one has taken its place."""
        try:
            same = (self.path / MANIFEST).read_bytes() == self._sealed
        except OSError:
            same = sealed(self.path)  # it can't be read just now
        if not same:
            what = "written anew" if sealed(self.path) else "removed"
            raise Removed(f"{self.path} was {what} meanwhile, as by training or averaging; run the command again")

    def damage(self) -> str | None:
        """What is wrong with its files against its manifest, or None; see `files.damage`."""
        return damage(self.path)

    def restore(self, items: Mapping[str, Any], *, verified: bool = False) -> dict[str, Any]:
        """The trees named in `items`, 'params' among them, each as its abstract tree (shapes, types, shardings) says.

        Raises `UserError` if the files are not those that were written (unless they are `verified`), or do not fit.
        """
        wrong = None if verified else self.damage()
        if wrong:
            self.require_same()
            raise UserError(f"{wrong}: {_DAMAGED}")
        try:
            # Compared here, for one clear line: Orbax stops at the first difference with several tracebacks.
            if wrong := self.misfit(items["params"]):
                raise UserError(wrong)
            restored = self._arrays.restore(self.path, items)
        except UserError:
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self.require_same()
            _refuse_no_memory(error, self.path)
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.path} cannot be restored: {reason}") from error
        if self.name == AVERAGE:  # a step, once it is read, is the same whoever has removed it
            self.require_same()
        return restored

    def misfit(self, params: Any) -> str | None:
        """How its parameters differ from these abstract ones, or None. Raises OSError or `UserError` if there are none
        to be read."""
        try:
            there = self._arrays.param_shapes(self.path)
        except OSError:
            self.require_same()
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self.require_same()
            _refuse_no_memory(error, self.path)
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.path} cannot be read ({why}): {_DAMAGED}") from None
        here = shapes_of(params)
        for path in here | there:
            if there.get(path) != here.get(path):
                return (
                    f"{self.path} does not fit the model: {path} is {there.get(path, 'missing')} there "
                    f"and {here.get(path, 'missing')} here"
                )
        return None

    def unfit(self, config: Any, params: Any, files: Mapping[str, bytes]) -> str | None:
        """Why a run with this config, these abstract parameters and files can't go on from this checkpoint, or None.

        The files of the checkpoint are whole: it is that of another run, or of another version of this program.
        """
        path = self.path
        try:
            if changed := conflicts(self.config, config):
                return f"{path} is that of another run: its {', '.join(changed)} is not the same"
            _ = self.evaluation
            step = self.progress.get("step")
            if not path.name.startswith(f"{step:08d}") or not (path / "state" / "optimizer").exists():
                return f"{path} is not one that training goes on from"
            for name, content in files.items():
                if (path / name).exists() and self.file(name) != content:
                    return f"{path} is that of another run: its {name} is not that of {path.parent.parent}"
            return self.misfit(params)
        except OutOfMemory:
            raise
        except UserError as error:
            return str(error)
        except OSError as error:
            where, why = error.filename or path, error.strerror or error
            raise UserError(f"{where} cannot be read ({why}); see to that, then run the same command again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path} is not one of this program ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _refuse_no_memory(error: Exception, path: epath.Path) -> None:
    """Raise `UserError` if a checkpoint could not be read as memory ran out: it may be whole."""
    if ran_out(error):
        raise short(error, f"{path} was not read; end other programs, or raise the limit (ulimit -v)") from None
