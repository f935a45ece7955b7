"""Checkpoints: save, verify, restore, average. The only file that knows Orbax.

    workdir/checkpoints/<step>/state/{params,optimizer}   Orbax's arrays
                               config.json, tokenizer.model, progress.json
                               manifest.json              sizes and sha256 of all of these, written last
    workdir/checkpoints/<step>.interrupted/                the same, where a run was asked to stop
    workdir/checkpoints/average/                           the same without optimizer

A folder that is being written or removed has a file `unfinished` instead of a manifest. Without either it is half a
copy that somebody made. Both are passed over; only the first kind is ever removed.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import hashlib
import itertools
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from transformer.config import Config, UserError, conflicts, from_json, whole_number
from transformer.files import (
    MANIFEST,
    UNFINISHED,
    Lock,
    damage,
    digest_of,
    files_in,
    local,
    manifest,
    path_of,
    refuse_links,
    replace,
    seal,
    sealed,
    synced,
    writing,
)
from transformer.judging import Judged, changes, check_progress, rank, upgraded
from transformer.memory import OutOfMemory, ran_out, short
from transformer.model import Model, Params, encoder_decoder
from transformer.phases import phase
from transformer.streams import to_json

log = logging.getLogger("transformer")
T = TypeVar("T")
AVERAGE = "average"
_NEXT = "average.next"  # a new average, until it has taken the place of the old one
_INTERRUPTED = ".interrupted"
_SAVED = ".saved"  # in the workdir: the name of the last checkpoint that training has sealed
# What `load`, `Translator.load` and a resumed run look for.
NEEDED = {"progress": {"step", "vocab_size"}, "files": {"config.json", "tokenizer.model"}, "items": {"params"}}
_DAMAGED = "this checkpoint is damaged; choose another with --checkpoint, or remove its folder"

GOES_ON = "then run the same command again: it goes on from the last complete checkpoint"


class Removed(UserError):
    """A checkpoint that was there is gone, or another one has taken its place."""


class Checkpoints:
    """The checkpoints of one workdir (a local folder, or a bucket such as gs://...)."""

    def __init__(self, workdir: str | epath.Path, lock: Lock | None = None):
        """`lock`: held by whoever writes here; checked before each write."""
        if not isinstance(workdir, (str, os.PathLike)):
            raise UserError(f"the workdir is a {type(workdir).__name__}: give a path")
        workdir = path_of(workdir)
        # Orbax takes absolute paths only; `resolve` would take gs:// for a local folder.
        self.folder = (workdir if workdir.is_absolute() else workdir.resolve()) / "checkpoints"
        storage = logging.getLogger("gcsfs")  # which logs a traceback of whatever it raises
        level = storage.level
        try:
            storage.setLevel(logging.CRITICAL)
            self.folder.exists()
        except ImportError as error:  # what a bucket needs is not installed with this package
            raise UserError(f"{workdir}: {error}") from None
        except Exception as error:  # each storage has its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{workdir} cannot be reached ({reason}); check its name, the network and your rights"
            ) from None
        finally:
            storage.setLevel(level)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._lock = lock
        self._plain = _plain_name(self)
        self._finishing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._decided, self._good, self._certain = threading.Event(), True, True
        self._warned: set[int | str] = set()

    def path(self, name: int | str) -> epath.Path:
        path = self.folder / (name if isinstance(name, str) else f"{name:08d}")
        if name == AVERAGE and not sealed(path) and sealed(self.folder / _NEXT):
            return self.folder / _NEXT
        return path

    def complete(self, name: int | str) -> bool:
        return sealed(self.path(name))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.exists():
            return []
        names = [path.name for path in self.folder.iterdir() if path.name.isdecimal()]
        for name in names:
            if not _of_training(name) and name not in self._warned:
                log.warning("%s is passed over: training names its checkpoints by eight digits", self.folder / name)
                self._warned.add(name)
        return sorted(int(name) for name in names if _of_training(name) and self.complete(name))

    def states(self) -> list[int | str]:
        """Names of all complete checkpoints that training can go on from, by their step: those of `steps`, and those
        of runs that were interrupted since the last of them."""
        steps = self.steps()
        waiting = {}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            number = path.name.removesuffix(_INTERRUPTED)
            interrupted = number != path.name and _of_training(path.name)
            if interrupted and self.complete(path.name) and int(number) > max(steps, default=-1):
                waiting[int(number)] = path.name
        return [*steps, *(waiting[step] for step in sorted(waiting))]

    def once_saved(self, every: int) -> str | None:
        """What shows that a run saved checkpoints, one in so many updates, whether they are there now or not."""
        workdir = self.folder.parent
        with contextlib.suppress(OSError, ValueError):
            return f"checkpoint {(workdir / _SAVED).read_text().strip()} was saved"
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else ():
            if path.is_dir() and not _unfinished(path):  # such as an average, or half a copy
                return f"{path} is there"
        with contextlib.suppress(OSError):
            if (workdir / "scores.jsonl").stat().length:
                return f"{workdir / 'scores.jsonl'} holds scores of one"
        try:
            lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")
        except OSError:
            return None
        for line in reversed(lines):
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # of half a line, say
                if (step := json.loads(line)["step"]) > 2 * every:  # the second save waits for the first
                    return f"{workdir / 'metrics.jsonl'} reaches step {step}"
        return None

    def open(self, checkpoint: str | int | None = None, judged: Judged | None = None) -> Checkpoint:
        """The checkpoint that `choose` gives."""
        return self.at(self.choose(checkpoint, judged))

    def at(self, name: int | str) -> Checkpoint:
        """The checkpoint of this name. Raises `Removed` if it is not there."""
        return Checkpoint(self, name)

    def read(self, checkpoint: str | int | None, reader: Callable[[Checkpoint], T], judged: Judged | None = None) -> T:
        """What `reader` makes of the checkpoint that `choose` gives.

        If it goes meanwhile, as training, which may go on, removes it, or a new average is made, another one is chosen.
        """
        return again(lambda: reader(self.open(checkpoint, judged)))

    def newest_whole(self) -> Checkpoint | None:
        """The newest checkpoint that training saved and that is as it was written, or None."""
        return next((there for name in reversed(self.states()) if not (there := self.at(name)).damage()), None)

    def best(self, unreadable: set[int] | None = None, judged: Judged | None = None) -> int | None:
        """The step of the best checkpoint (the earliest of equals), or None if none was evaluated.

        Only checkpoints whose scores compare with those of the newest one count. `judged`: what to judge them by,
        instead of what training did. Steps whose score can't be read are added to `unreadable`, with a warning; without
        it they raise `UserError`.
        """
        scored = {}
        for step in self.steps():
            try:
                if (progress := self.at(step).evaluation) is not None:
                    scored[step] = progress
            except Removed:
                pass
            except UserError as error:
                if unreadable is None:
                    raise
                if step not in self._warned:
                    log.warning("%s is kept, as its score is not known: %s", self.path(step).name, error)
                self._warned.add(step)
                unreadable.add(step)
        if not scored:
            return None
        if judged is not None:  # whatever judged when they were saved
            scored = {step: {**progress, "judged": judged} for step, progress in scored.items()}
        now = scored[max(scored)]
        alike = {step: progress for step, progress in scored.items() if not changes(progress, now)}
        ranks = {step: rank(progress, now["judged"]) for step, progress in alike.items()}
        return max((step for step in ranks if ranks[step]), key=lambda step: (ranks[step], -step), default=None)

    def choose(self, checkpoint: str | int | None = None, judged: Judged | None = None) -> int | str:
        """The name behind 'best', 'last', 'average' or a step; by default the average if there, else the best.

        `judged`: what to judge by, instead of what training did. Warns where that average, which nobody asked for by
        name, is of an earlier time than the last checkpoint.
        """
        steps = self.steps()
        workdir = self.folder.parent
        if checkpoint is None and steps and self.complete(AVERAGE):
            averaged = self.at(AVERAGE).progress["step"]
            if averaged < steps[-1]:
                log.warning(
                    "%s: its average ends at step %d, but training went on to %d; make it anew with: "
                    "python -m transformer average %s",
                    *(workdir, averaged, steps[-1], workdir),
                )
        checkpoint = None if checkpoint is None else str(checkpoint)
        if checkpoint == AVERAGE or (checkpoint is None and self.complete(AVERAGE)):
            if not self.complete(AVERAGE):
                raise UserError(f"{workdir}: no average yet; make one with: python -m transformer average {workdir}")
            return AVERAGE
        states = self.states()
        if not states:
            raise UserError(f"{workdir}: no complete checkpoint there; {_advice(self.folder.parent)}")
        if checkpoint is None or checkpoint == "best":
            best = self.best(judged=judged)
            if best is None and checkpoint == "best":
                raise UserError(f"{workdir}: no checkpoint was evaluated on a development set; use --checkpoint last")
            return states[-1] if best is None else best
        if checkpoint == "last":
            return states[-1]
        if (step := whole_number(checkpoint)) in steps:
            return step
        if checkpoint in states:
            return checkpoint
        raise UserError(
            f"--checkpoint {checkpoint}: not in {workdir}; it has {', '.join(map(str, steps))}, best, last and average"
        )

    def save(
        self,
        name: int | str,
        items: Mapping[str, Any],
        *,
        progress: Mapping[str, Any],
        files: Mapping[str, bytes],
        keep_last: int | None = None,
        keep_every: int | None = None,
        good: bool = True,
    ) -> None:
        """Start saving; returns once the arrays are copied off the devices, so their buffers may be donated.

        The checkpoint is sealed once its arrays were read back and `good` is certain. Where it is not yet, `confirm` or
        `wait` seals it, and `abandon` or the next save removes it. With `keep_last`, older checkpoints of the same run
        are removed then, but for the best and those whose step is a multiple of `keep_every`; where `wait` sealed it,
        uncertain as it is, they stay. The failure of a save is raised by the next one, or by `wait`.

        Of several processes all save, each what lies on its devices, to a folder that all of them see, and that
        process 0 has made (`make_folder`) before the first of them comes here; process 0 does the rest, too.

        Raises `ValueError`, before anything is written, where `progress`, `files` or `items` lacks what readers need.
        """
        _require_needed({"progress": progress, "files": files, "items": items})
        self.abandon()
        self._good, self._certain = True, good
        self._decided.set() if good else self._decided.clear()
        if jax.process_count() == 1:
            self.make_folder(name)
        path = self.folder / _NEXT if name == AVERAGE else self.path(name)
        # Written down now: the caller goes on counting while the arrays are being saved.
        progress = dict(progress)
        files = {**files, "progress.json": (to_json(progress, indent=2) + "\n").encode()}
        trees = ocp.args.Composite(**{k: ocp.args.StandardSave(tree) for k, tree in items.items()})
        shapes = {k: _shapes(tree) for k, tree in items.items()}
        with writing(path):
            self._orbax.save(self._orbax_path(path) / "state", args=trees)

        def finish() -> None:
            try:
                with phase(f"saving {path.name}"):
                    self._orbax.wait_until_finished()
                    if jax.process_index():
                        return
                    for file, content in files.items():
                        (path / file).write_bytes(content)
                    self._read_back(path, shapes, files)
                    self._decided.wait()
                    self._check_lock()
                    if not self._good:
                        return _remove(path)
                    seal(path)
                if name == AVERAGE:
                    self._replace_average()
                    return
                replace(self.folder.parent / _SAVED, f"{path.name}\n".encode())
                if not self._certain:
                    return
                with phase(f"pruning after {path.name}"):
                    self.prune(keep_last, keep_every, progress.get("run"))
            except BaseException as error:
                self._failure = error

        self._finishing = threading.Thread(target=finish, name="checkpoint")
        self._finishing.start()

    def confirm(self) -> None:
        """Let the checkpoint that is being saved be sealed: what came after it was good."""
        if not self._decided.is_set():
            self._certain = True
            self._decided.set()

    def abandon(self) -> None:
        """Remove the checkpoint that is being saved, unless `confirm` came first: what came after it was not good."""
        if not self._decided.is_set():
            self._good = False
            self._decided.set()
        self.wait()

    def _read_back(
        self, path: epath.Path, shapes: Mapping[str, dict[str, tuple[int, ...]]], files: Mapping[str, bytes]
    ) -> None:
        """Read what was saved, as a reader does. Raises `ValueError` where arrays are missing or of other shapes, or
        other files not as they were given.

        Several processes save more than one of them can hold: there the arrays' descriptions alone are read.
        """
        handler = ocp.PyTreeCheckpointHandler()
        for item, expected in shapes.items():
            at = self._orbax_path(path) / "state" / item
            there = handler.metadata(at).tree
            if jax.process_count() == 1:
                arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
                there = handler.restore(at, args=ocp.args.PyTreeRestore(restore_args=arguments))
            if _shapes(there) != expected:
                raise ValueError(f"{path / 'state' / item} does not hold the arrays that were saved")
        for file, content in files.items():
            if (path / file).read_bytes() != content:
                raise ValueError(f"{path / file} does not hold what was saved")

    def _orbax_path(self, path: epath.Path) -> epath.Path:
        """The path by which Orbax finds what lies at `path`."""
        return self._plain / path.relative_to(self.folder)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def make_folder(self, name: int | str) -> None:
        """An empty folder for a checkpoint, marked as unfinished. A new average is written beside the old one."""
        refuse_links(self.folder)
        self._check_lock()
        path = self.path(name)
        with writing(path):
            if name == AVERAGE:
                self._replace_average()
                path = self.folder / _NEXT
            self._clear(path)
            path.mkdir(parents=True)
            (path / UNFINISHED).write_bytes(f"{socket.gethostname()} {os.getpid()}\n".encode())

    def _replace_average(self) -> None:
        """Put a new average, if there is a complete one, where the old one is. At each moment either of them counts;
        where that is broken off, making the next one ends it."""
        path, new = self.folder / AVERAGE, self.folder / _NEXT
        if not sealed(new):
            return
        if sealed(path):
            _remove(path)
        self._clear(path)
        if local(path):
            new.rename(path)
            synced(self.folder)
            return
        # A bucket has no folders to rename.
        for file in (UNFINISHED, *(str(f.relative_to(new)) for f in files_in(new) if f.name != MANIFEST), MANIFEST):
            (path / file).write_bytes(b"" if file == UNFINISHED else (new / file).read_bytes())
        (path / UNFINISHED).unlink()
        _remove(new)

    def _clear(self, path: epath.Path) -> None:
        """Make room for a checkpoint: remove what was left unfinished there, and keep anything else under another name,
        as whole arrays without a manifest that may be half a copy."""
        if _unfinished(path):
            _remove(path)
        elif path.exists():
            self._set_aside(path)

    def wait(self) -> None:
        """Wait until the last save is complete; raises if it failed."""
        self._decided.set()
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._check_lock()  # where that is lost, it is the cause
            if isinstance(failure, UserError):
                raise failure
            if ran_out(failure):
                raise short(failure, f"no checkpoint was saved in {self.folder}; {GOES_ON}") from failure
            raise UserError(
                f"saving a checkpoint under {self.folder} failed ({failure}); make room or mend the folder; {GOES_ON}"
            ) from failure

    def discard(self, name: int | str) -> None:
        """Give a damaged checkpoint another name, under which it counts no longer; all of it stays."""
        refuse_links(self.folder)
        self._check_lock()
        self._set_aside(self.path(name))

    def _set_aside(self, path: epath.Path) -> None:
        others = (path.with_name(f"{path.name}.damaged{'' if n == 1 else f'-{n}'}") for n in itertools.count(1))
        aside = next(other for other in others if not other.exists())
        with writing(path):
            path.rename(aside)
        log.warning("%s is kept as %s", path, aside.name)

    def prune(self, keep_last: int | None, keep_every: int | None, run: str | None) -> None:
        """Remove checkpoints of this run that are no longer to be kept, and saves that did not end.

        Checkpoints of another `run` stay. What can't be removed stays, too, with a warning: the new checkpoint is
        complete anyway. Only for the one run that saves here, between its saves.
        """
        refuse_links(self.folder)
        try:
            steps, states, unreadable = self.steps(), self.states(), set()
            kept = {*states[-1:], *(steps if keep_last is None else steps[-keep_last:])}
            if keep_last is not None:
                kept |= {self.best(unreadable), *unreadable}
            kept |= {step for step in steps if keep_every and step % keep_every == 0}
            # Of those that a run was interrupted at, all but one that is the newest state of all go.
            needed = {self.path(name).name for name in kept if name is not None}
            there = list(self.folder.iterdir()) if self.folder.exists() else []
            unneeded = [path for path in there if _of_training(path.name) and path.name not in needed]
            unneeded = [path for path in unneeded if _unfinished(path) or self._of(path, run)]
        except (UserError, OSError) as error:
            log.warning("older checkpoints are not removed: %s", error)
            return
        self._check_lock()
        for path in unneeded:
            try:
                _remove(path)
            except OSError as error:
                log.warning("older checkpoints are not removed: %s", error)

    def _of(self, path: epath.Path, run: str | None) -> bool:
        """Whether a checkpoint is of a run. Those of earlier versions name none, and count as any run's."""
        try:
            return self.at(path.name).progress.get("run", run) == run
        except UserError:
            return False

    def average(self, last: int) -> list[int]:
        """Save the mean of the parameters of the last `last` checkpoints, by step, as 'average'; returns the steps.

        Training may go on meanwhile: if it removes one of them, they are the last ones there are then.
        """
        if type(last) is not int or last < 1:
            raise UserError(f"average the last {last!r} checkpoints: give a whole number, at least 1")
        path = self.folder.parent / ".average.lock"
        if not self.steps():
            raise UserError(f"{self.folder.parent}: no complete checkpoint to average")
        before = self._lock
        with writing(path), Lock(path, "another process averages there; wait until it is done").held() as self._lock:
            try:
                return again(lambda: self._average(last))
            finally:
                self._lock = before

    def _average(self, last: int) -> list[int]:
        steps = self.steps()[-last:]
        total: Any = None
        for step in steps:
            opened = self.at(step)
            params = opened.params()
            shapes = jax.tree.map(np.shape, params)
            if total is None:
                first, total = shapes, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
            elif shapes != first:
                raise UserError(
                    f"checkpoints {steps[0]} and {step} of {self.folder.parent} hold models of other shapes"
                )
            else:
                total = jax.tree.map(np.add, total, params)
        mean = jax.tree.map(lambda x: np.asarray(x / len(steps), np.float32), total)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(mean)):
            raise UserError(f"{self.folder.parent}: the mean of its last {len(steps)} checkpoints holds no numbers")
        files = {f: opened.file(f) for f in ("config.json", "tokenizer.model")}
        progress = {
            "step": steps[-1],
            "vocab_size": opened.progress["vocab_size"],
            "averaged_steps": steps,
            "trainable": False,
        }
        self.save(AVERAGE, {"params": mean}, progress=progress, files=files)
        self.wait()
        return steps


class Checkpoint:
    """A sealed checkpoint, pinned to the manifest that it had when it was opened.

    What is read of it is compared with that manifest. Reading raises `UserError` where a file is damaged, and `Removed`
    where the checkpoint has gone meanwhile, or another one has taken its place.
    """

    def __init__(self, checkpoints: Checkpoints, name: int | str):
        self.name, self.path = name, (path := checkpoints.path(name))
        self._checkpoints = checkpoints  # kept, as the path by which Orbax finds the arrays goes with it
        self._arrays = checkpoints._orbax_path(path) / "state"
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
        return encoder_decoder(self.config.model, self.progress["vocab_size"])

    def params(self, sharding: Sharding | None = None) -> Params:
        """The parameters; on the first device unless `sharding` says otherwise."""
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self.restore({"params": with_sharding(self.model.abstract_params, sharding)})["params"]

    def finite_params(self) -> Params:
        """`params`, for who hands them on. Raises `UserError` where some are no finite numbers."""
        params = self.params()
        if not all(bool(jax.numpy.isfinite(x).all()) for x in jax.tree.leaves(params)):
            raise UserError(f"{self.path} holds parameters that are no numbers; choose another with --checkpoint")
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
            restored = self._checkpoints._orbax.restore(
                self._arrays,
                args=ocp.args.Composite(**{k: ocp.args.StandardRestore(tree) for k, tree in items.items()}),
            )
        except UserError:
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self.require_same()
            _refuse_no_memory(error, self.path)
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.path} cannot be restored: {reason}") from error
        if self.name == AVERAGE:  # a step, once it is read, is the same whoever has removed it
            self.require_same()
        return {k: restored[k] for k in items}

    def misfit(self, params: Any) -> str | None:
        """How its parameters differ from these abstract ones, or None. Raises OSError or `UserError` if there are none
        to be read."""
        try:
            there = _shapes(ocp.StandardCheckpointHandler().metadata(self._arrays / "params").tree)
        except OSError:
            self.require_same()
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self.require_same()
            _refuse_no_memory(error, self.path)
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.path} cannot be read ({why}): {_DAMAGED}") from None
        here = _shapes(params)
        for path in here | there:
            if there.get(path) != here.get(path):
                return (
                    f"{self.path} does not fit the model: {path} is {there.get(path, 'missing')} there "
                    f"and {here.get(path, 'missing')} here"
                )
        return None

    def unfit(self, config: Config, params: Any, tokenizer: bytes | None) -> str | None:
        """Why a run of this config, with these abstract parameters, can't go on from this checkpoint, whose files are
        whole, or None: it is that of another run, or of another version of this program.

        Raises `UserError` where the config names another tokenizer than the one it is trained with.
        """
        path, ours = self.path, self.path.parent.parent / "tokenizer.model"
        if config.data.tokenizer is not None and tokenizer is not None:
            _refuse_other_tokenizer(config.data.tokenizer, tokenizer, ours)
        try:
            if changed := conflicts(self.config, config):
                return f"{path} is that of another run: its {', '.join(changed)} is not the same"
            _ = self.evaluation
            step = self.progress.get("step")
            if not path.name.startswith(f"{step:08d}") or not (path / "state" / "optimizer").exists():
                return f"{path} is not one that training goes on from"
            if tokenizer is not None and self.file("tokenizer.model") != tokenizer:
                return f"{path} is that of another tokenizer than {ours}"
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


def _refuse_other_tokenizer(given: str, tokenizer: bytes, ours: epath.Path) -> None:
    try:
        same = Path(given).read_bytes() == tokenizer
    except OSError as error:
        raise UserError(f"data.tokenizer = {given!r} cannot be read ({error.strerror or error})") from None
    if not same:
        raise UserError(
            f"data.tokenizer = {given!r} is not the tokenizer that {ours.parent} was trained with, {ours}; give that "
            "one, or use another --workdir"
        )


def _refuse_no_memory(error: Exception, path: epath.Path) -> None:
    """Raise `UserError` if a checkpoint could not be read as memory ran out: it may be whole."""
    if ran_out(error):
        raise short(error, f"{path} was not read; end other programs, or raise the limit (ulimit -v)") from None


def interrupted(step: int) -> str:
    """The name of the checkpoint of a run that was asked to stop after so many updates."""
    return f"{step:08d}{_INTERRUPTED}"


def with_sharding(abstract: Any, sharding: Any) -> Any:
    """The abstract tree with one sharding for all leaves, or a tree of them."""
    if isinstance(sharding, Sharding):
        sharding = jax.tree.map(lambda _: sharding, abstract)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)


def load(workdir: str, checkpoint: str | int | None = None) -> tuple[Model, Params]:
    """The model of a workdir and its parameters, ready for `model.apply(params, source_BS, target_BT)`.

    `checkpoint` is 'best', 'last', 'average' or a step; by default the average if one was made, else the best one.
    Raises `UserError` where there is none.
    """
    return Checkpoints(workdir).read(checkpoint, lambda opened: (opened.model, opened.params()))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(name, keys)): tuple(leaf.shape) for keys, leaf in leaves}


def _advice(workdir: epath.Path) -> str:
    """What to do where no checkpoint is in a workdir."""
    if workdir.is_file():
        return "it is a file; give the folder that train.py made, unpacked"
    above = next((path for path in (workdir, workdir.parent) if path.name == "checkpoints"), None)
    return f"give the workdir itself: {above.parent}" if above else "train first, or check the path"


def again(read: Callable[[], T]) -> T:
    """What `read` returns, which is called anew while it raises `Removed`."""
    for _ in range(20):
        with contextlib.suppress(Removed):
            return read()
        # Orbax's reads that failed log with a traceback when they are collected. In CPython 3.11 that must not come
        # while source is parsed, as tyro does: now, then.
        gc.collect()
    return read()


def _require_needed(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ValueError` where a checkpoint would lack what readers need."""
    if lacking := [f"{name} in {where}" for where, names in NEEDED.items() for name in names - given[where].keys()]:
        raise ValueError(f"a checkpoint can't be read without {', '.join(sorted(lacking))}; give save these, too")


def _plain_name(checkpoints: Checkpoints) -> epath.Path:
    """A path to the folder of checkpoints for Orbax, which takes [, * and ? in a path for a pattern and \\ for /, and
    writes each path as UTF-8, whatever the locale.

    Where the folder's own path is not so it is a link in a temporary folder, which goes with `checkpoints`.
    """
    folder = checkpoints.folder
    if _means_itself(str(folder)):
        return folder
    if not local(folder) or jax.process_count() > 1 or not _means_itself(tempfile.gettempdir()):
        raise UserError(
            f"{folder.parent}: in a bucket, with several processes, or with such a TMPDIR, a workdir's path can't have "
            "[, *, ? or \\, nor letters that are not UTF-8 in this locale; rename it"
        )
    beside = tempfile.mkdtemp(prefix="transformer-")
    weakref.finalize(checkpoints, shutil.rmtree, beside, ignore_errors=True)
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


# ---- A checkpoint's folder ------------------------------------------------------------------------------------------


def _unfinished(path: epath.Path) -> bool:
    """Whether this program was writing or removing it; an empty one it may have been about to write."""
    if not path.is_dir() or sealed(path):
        return False
    return (path / UNFINISHED).exists() or not any(path.iterdir())


def _of_training(name: str) -> bool:
    """Whether this is the name of a checkpoint that training saves."""
    number = name.removesuffix(_INTERRUPTED)
    return number.isdecimal() and number == f"{int(number):08d}"


def _remove(path: epath.Path) -> None:
    """Remove a checkpoint; where that is broken off, what is left is an unfinished one."""
    if os.path.islink(path):  # what it names is another's
        return path.unlink()
    if sealed(path):
        (path / MANIFEST).replace(path / UNFINISHED)
    for inside in path.iterdir():
        if inside.name != UNFINISHED:
            inside.rmtree()
    path.rmtree()
