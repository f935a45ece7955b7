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
import hashlib
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from transformer.config import Config, UserError, conflicts, from_json
from transformer.durable import synced
from transformer.judging import Judged, changes, rank, upgraded
from transformer.model import Model, Params, encoder_decoder
from transformer.phases import phase

log = logging.getLogger("transformer")
T = TypeVar("T")
AVERAGE = "average"
_NEXT = "average.next"  # a new average, until it has taken the place of the old one
_INTERRUPTED = ".interrupted"
_MANIFEST = "manifest.json"
_UNFINISHED = "unfinished"
_DAMAGED = "this checkpoint is damaged; choose another with --checkpoint, or remove its folder"


class Removed(UserError):
    """A checkpoint that was there is gone, or another one has taken its place."""


class Checkpoints:
    """The checkpoints of one workdir (a local folder, or a bucket such as gs://...)."""

    def __init__(self, workdir: str | epath.Path):
        workdir = epath.Path(workdir)
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
        self._finishing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._warned: set[int] = set()

    def path(self, name: int | str) -> epath.Path:
        path = self.folder / (name if isinstance(name, str) else f"{name:08d}")
        if name == AVERAGE and not _complete(path) and _complete(self.folder / _NEXT):
            return self.folder / _NEXT
        return path

    def complete(self, name: int | str) -> bool:
        return _complete(self.path(name))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.exists():
            return []
        names = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        return sorted(step for step in names if self.complete(step))

    def states(self) -> list[int | str]:
        """Names of all complete checkpoints that training can go on from, by their step: those of `steps`, and those
        of runs that were interrupted since the last of them."""
        steps = self.steps()
        waiting = {}
        for path in self.folder.glob(f"*{_INTERRUPTED}") if self.folder.exists() else ():
            number = path.name.removesuffix(_INTERRUPTED)
            if number.isdigit() and self.complete(path.name) and int(number) > max(steps, default=-1):
                waiting[int(number)] = path.name
        return [*steps, *(waiting[step] for step in sorted(waiting))]

    def progress(self, name: int | str) -> dict[str, Any]:
        """What was saved beside the arrays: 'step', 'vocab_size', the scores (see transformer/judging.py), ..."""
        progress = json.loads(self._json(name, "progress.json"))
        if not isinstance(progress, dict):
            raise UserError(f"{self.path(name) / 'progress.json'} is not one of this program: {_DAMAGED}")
        return progress

    def config(self, name: int | str) -> Config:
        return from_json(self._json(name, "config.json"), str(self.path(name) / "config.json"))

    def _json(self, name: int | str, file: str) -> str:
        try:
            text = self.file(name, file).decode()
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path(name) / file} cannot be read ({error}): {_DAMAGED}") from None
        return text

    def file(self, name: int | str, file: str) -> bytes:
        """What is in one of the files beside the arrays, as it was written."""
        path = self.path(name) / file
        try:
            content = path.read_bytes()
            wrong = file != _MANIFEST and _manifest(path.parent).get(file) != _entry(content)
        except OSError as error:
            self._still(name)
            raise UserError(f"{path} cannot be read ({error}): {_DAMAGED}") from None
        except ValueError as error:
            raise UserError(f"{path.parent / _MANIFEST} is not as it was written ({error}): {_DAMAGED}") from None
        if wrong:
            raise UserError(f"{path} is not as it was written: {_DAMAGED}")
        return content

    def _still(self, name: int | str) -> None:
        """Raise `Removed` if a checkpoint that was there is no longer."""
        if not self.complete(name):
            raise Removed(
                f"{self.path(name)} was removed meanwhile, as by training, which keeps train.keep_last checkpoints; "
                "run the command again"
            )

    def newest_whole(self) -> int | str | None:
        """The newest checkpoint that training saved and that is as it was written, or None."""
        return next((name for name in reversed(self.states()) if not self.verify(name)), None)

    def read(self, checkpoint: str | int | None, reader: Callable[[int | str], T], judged: Judged | None = None) -> T:
        """What `reader` makes of the checkpoint that `choose` gives. If that goes meanwhile, as training, which may go
        on, removes it, or a new average is made, it is what is chosen then."""

        def read() -> T:
            name = self.choose(checkpoint, judged)
            with self.the_same(name):
                return reader(name)

        return again(read)

    @contextlib.contextmanager
    def the_same(self, name: int | str) -> Iterator[None]:
        """A block that reads a checkpoint by its name, for what `again` calls: raises `Removed` if it failed as that is
        gone, or may have read of two, as another one took its place."""
        if (before := self._sealed(name)) is None:
            self._still(name)
        try:
            yield
        except UserError:
            if self._sealed(name) != before:
                self._still(name)
                raise Removed(f"{self.path(name)} was written anew meanwhile; run the command again") from None
            raise
        if name == AVERAGE and self._sealed(name) != before:
            raise Removed(f"{self.path(name)} was written anew meanwhile; run the command again")

    def _sealed(self, name: int | str) -> bytes | None:
        """The manifest, which tells one checkpoint from another of the same name."""
        try:
            return (self.path(name) / _MANIFEST).read_bytes()
        except OSError:
            return None

    def evaluation(self, name: int | str) -> dict[str, Any] | None:
        """The progress of a checkpoint, in today's form, if it was evaluated with a finite score; else None."""
        progress = upgraded(self.progress(name), lambda: self.config(name))
        if "judged" not in progress:  # as that of an average
            return None
        try:
            changes(progress, progress)
            return progress if rank(progress, progress["judged"]) else None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            where, why = self.path(name) / "progress.json", f"{type(error).__name__}: {error}"
            raise UserError(f"{where} is not one of this program ({why}): {_DAMAGED}") from None

    def best(self, unreadable: set[int] | None = None, judged: Judged | None = None) -> int | None:
        """The step of the best checkpoint (the earliest of equals), or None if none was evaluated.

        Only checkpoints whose scores compare with those of the newest one count. `judged`: what to judge them by,
        instead of what training did. Steps whose score can't be read are added to `unreadable`, with a warning; without
        it they raise `UserError`.
        """
        scored = {}
        for step in self.steps():
            try:
                if (progress := self.evaluation(step)) is not None:
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
            averaged = self.progress(AVERAGE)["step"]
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
            raise UserError(f"{workdir}: no complete checkpoint there; train first, or check the path")
        if checkpoint is None or checkpoint == "best":
            best = self.best(judged=judged)
            if best is None and checkpoint == "best":
                raise UserError(f"{workdir}: no checkpoint was evaluated on a development set; use --checkpoint last")
            return states[-1] if best is None else best
        if checkpoint == "last":
            return states[-1]
        if checkpoint.isdigit() and int(checkpoint) in steps:
            return int(checkpoint)
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
    ) -> None:
        """Start saving; returns once the arrays are copied off the devices, so their buffers may be donated.

        With `keep_last`, older checkpoints are removed once this one is complete, but for the best one and
        those whose step is a multiple of `keep_every`. The failure of a save is raised by the next one, or by `wait`.
        Of several processes all save, each what lies on its devices, to a folder that all of them see, and that
        process 0 has made (`make_folder`) before the first of them comes here; process 0 does the rest, too.
        """
        self.wait()
        if jax.process_count() == 1:
            self.make_folder(name)
        path = self.folder / _NEXT if name == AVERAGE else self.path(name)
        # Written down now: the caller goes on counting while the arrays are being saved.
        files = {**files, "progress.json": (json.dumps(dict(progress), indent=2) + "\n").encode()}
        trees = ocp.args.Composite(**{k: ocp.args.StandardSave(tree) for k, tree in items.items()})
        with writing(path):
            self._orbax.save(path / "state", args=trees)

        def finish() -> None:
            try:
                with phase(f"saving {path.name}"):
                    self._orbax.wait_until_finished()
                    if jax.process_index():
                        return
                    for file, content in files.items():
                        (path / file).write_bytes(content)
                    _seal(path)
                if name == AVERAGE:
                    self._replace_average()
                else:
                    with phase(f"pruning after {path.name}"):
                        self.prune(keep_last, keep_every)
            except BaseException as error:
                self._failure = error

        self._finishing = threading.Thread(target=finish, name="checkpoint")
        self._finishing.start()

    def make_folder(self, name: int | str) -> None:
        """An empty folder for a checkpoint, marked as unfinished. A new average is written beside the old one."""
        refuse_links(self.folder)
        path = self.path(name)
        with writing(path):
            if name == AVERAGE:
                self._replace_average()
                path = self.folder / _NEXT
            self._clear(path)
            path.mkdir(parents=True)
            (path / _UNFINISHED).write_bytes(f"{socket.gethostname()} {os.getpid()}\n".encode())

    def _replace_average(self) -> None:
        """Put a new average, if there is a complete one, where the old one is. At each moment either of them counts;
        where that is broken off, making the next one ends it."""
        path, new = self.folder / AVERAGE, self.folder / _NEXT
        if not _complete(new):
            return
        if _complete(path):
            _remove(path)
        self._clear(path)
        if local(path):
            new.rename(path)
            synced(self.folder)
            return
        # A bucket has no folders to rename.
        for file in (_UNFINISHED, *(str(f.relative_to(new)) for f in _files(new) if f.name != _MANIFEST), _MANIFEST):
            (path / file).write_bytes(b"" if file == _UNFINISHED else (new / file).read_bytes())
        (path / _UNFINISHED).unlink()
        _remove(new)

    def _clear(self, path: epath.Path) -> None:
        """Make room for a checkpoint: remove what was left unfinished there, and keep anything else under another name,
        as whole arrays without a manifest that may be half a copy."""
        if _unfinished(path):
            _remove(path)
        elif path.exists():
            self._set_aside(path)

    def wait(self) -> None:
        """Until the last save is complete; raises if it failed."""
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise UserError(
                f"saving a checkpoint under {self.folder} failed ({failure}); make room or mend the folder, then run "
                "the same command again: it goes on from the last complete checkpoint"
            ) from failure

    def discard(self, name: int | str) -> None:
        """Give a damaged checkpoint another name, under which it counts no longer; all of it stays."""
        refuse_links(self.folder)
        self._set_aside(self.path(name))

    def _set_aside(self, path: epath.Path) -> None:
        others = (path.with_name(f"{path.name}.damaged{'' if n == 1 else f'-{n}'}") for n in itertools.count(1))
        aside = next(other for other in others if not other.exists())
        with writing(path):
            path.rename(aside)
        log.warning("%s is kept as %s", path, aside.name)

    def prune(self, keep_last: int | None, keep_every: int | None) -> None:
        """Remove what is no longer to be kept, and saves that did not end. What can't be removed stays, with a warning:
        the new checkpoint is complete anyway. Only for the one run that saves here, between its saves."""
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
            unneeded = [path for path in unneeded if _complete(path) or _unfinished(path)]
        except (UserError, OSError) as error:
            log.warning("older checkpoints are not removed: %s", error)
            return
        for path in unneeded:
            try:
                _remove(path)
            except OSError as error:
                log.warning("older checkpoints are not removed: %s", error)

    def verify(self, name: int | str) -> str | None:
        """What is wrong with a checkpoint's files against its manifest, or None.

        Raises `UserError` for a file that can't be read at the moment: that says nothing about what is in it.
        """
        path = self.path(name)
        try:
            for file, expected in _manifest(path).items():
                if not (path / file).exists():
                    return f"{path / file} is missing"
                if _digest(path / file) != expected:
                    return f"{path / file} is not as it was written"
        except ValueError as error:
            return f"{path / _MANIFEST} is not as it was written ({error})"
        except FileNotFoundError as error:
            return f"{error.filename or path} is missing"
        except OSError as error:
            where, why = error.filename or path, error.strerror or error
            raise UserError(f"{where} cannot be read ({why}); see to that, then run the same command again") from None
        return None

    def restore(self, name: int | str, items: Mapping[str, Any], *, verified: bool = False) -> dict[str, Any]:
        """The trees named in `items`, 'params' among them, each as its abstract tree (shapes, types, shardings) says.

        Raises `UserError` if the files are not those that were written (unless they are `verified`), or do not fit.
        """
        wrong = None if verified else self.verify(name)
        if wrong:
            self._still(name)
            raise UserError(f"{wrong}: {_DAMAGED}")
        try:
            # Compared here, for one clear line: Orbax stops at the first difference with several tracebacks.
            if wrong := self.misfit(name, items["params"]):
                raise UserError(wrong)
            restored = self._orbax.restore(
                self.path(name) / "state",
                args=ocp.args.Composite(**{k: ocp.args.StandardRestore(tree) for k, tree in items.items()}),
            )
        except UserError:
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self._still(name)
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.path(name)} cannot be restored: {reason}") from error
        return {k: restored[k] for k in items}

    def misfit(self, name: int | str, params: Any) -> str | None:
        """How the parameters of a checkpoint differ from these abstract ones, or None. Raises OSError or `UserError` if
        there are none to be read."""
        try:
            there = _shapes(ocp.StandardCheckpointHandler().metadata(self.path(name) / "state" / "params").tree)
        except OSError:
            self._still(name)
            raise
        except Exception as error:  # which is what Orbax raises, among others
            self._still(name)
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{self.path(name)} cannot be read ({why}): {_DAMAGED}") from None
        here = _shapes(params)
        for path in here | there:
            if there.get(path) != here.get(path):
                return (
                    f"{self.path(name)} does not fit the model: {path} is {there.get(path, 'missing')} there "
                    f"and {here.get(path, 'missing')} here"
                )
        return None

    def unfit(self, name: int | str, config: Config, params: Any, tokenizer: bytes | None) -> str | None:
        """Why a run of this config, with these abstract parameters, can't go on from a checkpoint whose files are
        whole, or None: it is that of another run, or of another version of this program.

        Raises `UserError` where the config names another tokenizer than the one it is trained with.
        """
        path = self.path(name)
        if config.data.tokenizer is not None and tokenizer is not None:
            self._refuse_other_tokenizer(config.data.tokenizer, tokenizer)
        try:
            if changed := conflicts(self.config(name), config):
                return f"{path} is that of another run: its {', '.join(changed)} is not the same"
            self.evaluation(name)
            step = self.progress(name).get("step")
            if not path.name.startswith(f"{step:08d}") or not (path / "state" / "optimizer").exists():
                return f"{path} is not one that training goes on from"
            if tokenizer is not None and self.file(name, "tokenizer.model") != tokenizer:
                return f"{path} is that of another tokenizer than {self.folder.parent / 'tokenizer.model'}"
            return self.misfit(name, params)
        except UserError as error:
            return str(error)
        except OSError as error:
            where, why = error.filename or path, error.strerror or error
            raise UserError(f"{where} cannot be read ({why}); see to that, then run the same command again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path} is not one of this program ({type(error).__name__}: {' '.join(str(error).split())[:200]})"

    def _refuse_other_tokenizer(self, given: str, tokenizer: bytes) -> None:
        try:
            same = Path(given).read_bytes() == tokenizer
        except OSError as error:
            raise UserError(f"data.tokenizer = {given!r} cannot be read ({error.strerror or error})") from None
        if not same:
            ours = self.folder.parent / "tokenizer.model"
            raise UserError(
                f"data.tokenizer = {given!r} is not the tokenizer that {self.folder.parent} was trained with, {ours}; "
                "give that one, or use another --workdir"
            )

    def average(self, last: int) -> list[int]:
        """Save the mean of the parameters of the last `last` checkpoints, by step, as 'average'; returns the steps.

        Training may go on meanwhile: if it removes one of them, they are the last ones there are then.
        """
        return again(lambda: self._average(last))

    def _average(self, last: int) -> list[int]:
        steps = self.steps()[-last:]
        if not steps:
            raise UserError(f"{self.folder.parent}: no complete checkpoint to average")
        total: Any = None
        for step in steps:
            params = self.params(step)
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
        files = {f: self.file(steps[-1], f) for f in ("config.json", "tokenizer.model")}
        progress = {
            "step": steps[-1],
            "vocab_size": self.progress(steps[-1])["vocab_size"],
            "averaged_steps": steps,
            "trainable": False,
        }
        self.save(AVERAGE, {"params": mean}, progress=progress, files=files)
        self.wait()
        return steps

    def params(self, name: int | str, sharding: Sharding | None = None) -> Params:
        """The parameters of a checkpoint; on the first device unless `sharding` says otherwise."""
        model = encoder_decoder(self.config(name).model, self.progress(name)["vocab_size"])
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self.restore(name, {"params": with_sharding(model.abstract_params, sharding)})["params"]


def interrupted(step: int) -> str:
    """The name of the checkpoint of a run that was asked to stop after so many updates."""
    return f"{step:08d}{_INTERRUPTED}"


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[None]:
    """For a block that writes to or below `path`: what the disk refuses is told in one line."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or path, error.strerror or error
        raise UserError(
            f"{where} cannot be written ({why}); make room or mend the folder, then run the same command again"
        ) from error


def replace(path: epath.Path, content: bytes) -> None:
    """Give a file this content, whole or not at all; one that has it already is left alone."""
    temporary = path.parent / f"{path.name}.tmp"
    refuse_links(path, temporary)
    with writing(path):
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            if local(path):
                synced(temporary)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with phase(f"renaming {path.name}"):
            temporary.replace(path)
        if local(path):
            synced(path.parent)


def refuse_links(*paths: Any) -> None:
    """Raise `UserError` if one of these, where a workdir has a file or folder of its own, is a link: what is written
    there would lie outside the workdir. The workdir itself may be one."""
    for path in paths:
        if os.path.islink(path):
            raise UserError(
                f"{path} is a link, and what is written there would lie outside the workdir; remove it, and move there "
                "what it names, or make the whole workdir a link"
            )


def local(path: Any) -> bool:
    """Whether a path is on this machine, not in a bucket."""
    return "://" not in str(path)


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
    checkpoints = Checkpoints(workdir)

    def read(name: int | str) -> tuple[Model, Params]:
        model = encoder_decoder(checkpoints.config(name).model, checkpoints.progress(name)["vocab_size"])
        return model, checkpoints.params(name)

    return checkpoints.read(checkpoint, read)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in keys): tuple(leaf.shape) for keys, leaf in leaves}


def again(read: Callable[[], T]) -> T:
    """What `read` returns, which is called anew while it raises `Removed`."""
    for _ in range(20):
        with contextlib.suppress(Removed):
            return read()
        # Orbax's reads that failed log with a traceback when they are collected. In CPython 3.11 that must not come
        # while source is parsed, as tyro does: now, then.
        gc.collect()
    return read()


# ---- A checkpoint's folder ------------------------------------------------------------------------------------------


def _complete(path: epath.Path) -> bool:
    return (path / _MANIFEST).exists()


def _unfinished(path: epath.Path) -> bool:
    """Whether this program was writing or removing it; an empty one it may have been about to write."""
    if not path.is_dir() or _complete(path):
        return False
    return (path / _UNFINISHED).exists() or not any(path.iterdir())


def _of_training(name: str) -> bool:
    """Whether this is the name of a checkpoint that training saves."""
    number = name.removesuffix(_INTERRUPTED)
    return number.isdecimal() and number == f"{int(number):08d}"


def _seal(path: epath.Path) -> None:
    """Make an unfinished checkpoint a complete one. All else is on the disk before its manifest is."""
    manifest = {str(f.relative_to(path)): _digest(f) for f in _files(path) if f != path / _UNFINISHED}
    if local(path):
        with ThreadPoolExecutor(8) as pool:  # each waits for the disk, which takes them together
            list(pool.map(synced, [path, *Path(path).rglob("*")]))
    (path / _UNFINISHED).write_bytes((json.dumps(manifest, indent=2) + "\n").encode())
    if local(path):
        synced(path / _UNFINISHED)
    with phase(f"renaming {_MANIFEST}"):
        (path / _UNFINISHED).replace(path / _MANIFEST)
    if local(path):
        for folder in (path, path.parent):
            synced(folder)


def _remove(path: epath.Path) -> None:
    """Remove a checkpoint; where that is broken off, what is left is an unfinished one."""
    if os.path.islink(path):  # what it names is another's
        return path.unlink()
    if _complete(path):
        (path / _MANIFEST).replace(path / _UNFINISHED)
    for inside in path.iterdir():
        if inside.name != _UNFINISHED:
            inside.rmtree()
    path.rmtree()


def _manifest(path: epath.Path) -> dict[str, Any]:
    """Size and sha256 of each file of a checkpoint. Raises `ValueError` where its manifest is none."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(manifest, dict) or not manifest:
        raise ValueError("it names no files")
    for file in manifest:
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"it names {file}, which is not in the checkpoint")
    return manifest


def _files(folder: epath.Path) -> Sequence[epath.Path]:
    files: list[epath.Path] = []
    for path in sorted(folder.iterdir()):
        files += _files(path) if path.is_dir() else [path]
    return files


def _digest(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _entry(content: bytes) -> dict[str, Any]:
    """As `_digest`, of what was read already."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
