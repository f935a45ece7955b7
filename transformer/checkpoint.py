"""Checkpoints: save, verify, restore, average. The only file that knows Orbax.

    workdir/checkpoints/<step>/state/{params,optimizer}   Orbax's arrays
                               config.json, tokenizer.model, progress.json
                               manifest.json              sizes and sha256 of all of these, written last
    workdir/checkpoints/<step>.interrupted/                the same, where a run was asked to stop
    workdir/checkpoints/average/                           the same without optimizer

A folder without a manifest is a save that did not end, and is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from transformer.config import Config, UserError, conflicts, from_json
from transformer.model import Model, Params, encoder_decoder
from transformer.phases import phase

log = logging.getLogger("transformer")
T = TypeVar("T")
AVERAGE = "average"
_INTERRUPTED = ".interrupted"
_DAMAGED = "this checkpoint is damaged; choose another with --checkpoint, or remove its folder"


class Removed(UserError):
    """A checkpoint that was there is gone."""


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

    def path(self, name: int | str) -> epath.Path:
        return self.folder / (name if isinstance(name, str) else f"{name:08d}")

    def complete(self, name: int | str) -> bool:
        return (self.path(name) / "manifest.json").exists()

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
        """What was saved beside the arrays: 'step', 'dev_bleu' (None if not evaluated there), 'vocab_size', ..."""
        return json.loads(self._json(name, "progress.json"))

    def config(self, name: int | str) -> Config:
        return from_json(self._json(name, "config.json"), str(self.path(name) / "config.json"))

    def _json(self, name: int | str, file: str) -> str:
        path = self.path(name) / file
        try:
            text = path.read_text()
            json.loads(text)
        except (OSError, ValueError) as error:
            self._still(name)
            raise UserError(f"{path} cannot be read ({error}): {_DAMAGED}") from None
        return text

    def file(self, name: int | str, file: str) -> bytes:
        """What is in one of the files beside the arrays."""
        try:
            return (self.path(name) / file).read_bytes()
        except OSError as error:
            self._still(name)
            raise UserError(f"{self.path(name) / file} cannot be read ({error}): {_DAMAGED}") from None

    def _still(self, name: int | str) -> None:
        """Raise `Removed` if a checkpoint that was there is no longer."""
        if not self.complete(name):
            raise Removed(
                f"{self.path(name)} was removed meanwhile, as by training, which keeps train.keep_last checkpoints; "
                "run the command again"
            )

    def read(self, checkpoint: str | int | None, reader: Callable[[int | str], T]) -> T:
        """What `reader` makes of the checkpoint that `choose` gives. If training, which may go on all the while,
        removes it meanwhile, it is what is chosen then."""
        for _ in range(20):
            with contextlib.suppress(Removed):
                return reader(self.choose(checkpoint))
        return reader(self.choose(checkpoint))

    def best(self) -> int | None:
        """The step with the best dev BLEU (the earliest of equals), or None if none was evaluated."""
        scored = {}
        for step in self.steps():
            with contextlib.suppress(Removed):
                if (progress := self.progress(step)).get("dev_bleu") is not None:
                    scored[step] = progress
        # Scores of other sentences than today's do not compare.
        now = scored[max(scored)].get("dev_digest") if scored else None
        comparable = [step for step, progress in scored.items() if progress.get("dev_digest", now) == now]
        return max(comparable, key=lambda step: (scored[step]["dev_bleu"], -step), default=None)

    def choose(self, checkpoint: str | int | None = None) -> int | str:
        """The name behind 'best', 'last', 'average' or a step; by default the average if there, else the best.

        Warns where that average, which nobody asked for by name, is of an earlier time than the last checkpoint.
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
            best = self.best()
            if best is None and checkpoint == "best":
                raise UserError(f"{workdir}: no checkpoint was evaluated on a development set; use --checkpoint last")
            return states[-1] if best is None else best
        if checkpoint == "last":
            return states[-1]
        if checkpoint.isdigit() and int(checkpoint) in steps:
            return int(checkpoint)
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

        With `keep_last`, older checkpoints are removed once this one is complete, but for the best on dev BLEU and
        those whose step is a multiple of `keep_every`. The failure of a save is raised by the next one, or by `wait`.
        Of several processes all save, each what lies on its devices, to a folder that all of them see, and that
        process 0 has made (`make_folder`) before the first of them comes here; process 0 does the rest, too.
        """
        self.wait()
        if jax.process_count() == 1:
            self.make_folder(name)
        path = self.path(name)
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
                    manifest = {str(f.relative_to(path)): _digest(f) for f in _files(path)}
                    replace(path / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
                with phase(f"pruning after {path.name}"):
                    self.prune(keep_last, keep_every)
            except BaseException as error:
                self._failure = error

        self._finishing = threading.Thread(target=finish, name="checkpoint")
        self._finishing.start()

    def make_folder(self, name: int | str) -> None:
        """An empty folder for a checkpoint."""
        path = self.path(name)
        with writing(path):
            if (path / "state").exists():  # whole arrays without a manifest: killed a moment too early, or half a copy
                self.discard(name)
            elif path.exists():
                path.rmtree()
            path.mkdir(parents=True)

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
        path = self.path(name)
        others = (path.with_name(f"{path.name}.damaged{'' if n == 1 else f'-{n}'}") for n in itertools.count(1))
        aside = next(other for other in others if not other.exists())
        with writing(path):
            path.rename(aside)
        log.warning("%s is kept as %s", path, aside.name)

    def prune(self, keep_last: int | None, keep_every: int | None) -> None:
        """Remove what is no longer to be kept. What can't be removed stays: the new checkpoint is complete anyway."""
        try:
            steps, states = self.steps(), self.states()
            if not states:
                return
            kept: set[int | str | None] = {states[-1]}
            if keep_last is None:
                kept |= set(steps)
            else:
                kept |= {*steps[-keep_last:], self.best()}
                kept |= {step for step in steps if keep_every and step % keep_every == 0}
            # Of those that a run was interrupted at, all but one that is the newest state of all.
            waiting = [path.name for path in self.folder.glob(f"*{_INTERRUPTED}") if self.complete(path.name)]
            for name in [*steps, *waiting]:
                if name not in kept:
                    # What is half removed must not look complete.
                    path = self.path(name)
                    path.rename(path.with_name(f"{path.name}.removed"))
            for path in self.folder.glob("*.removed"):
                path.rmtree()
        except (UserError, OSError) as error:
            log.warning("older checkpoints are not removed: %s", error)

    def verify(self, name: int | str) -> str | None:
        """What is wrong with a checkpoint's files against its manifest, or None.

        Raises `UserError` for a file that can't be read at the moment: that says nothing about what is in it.
        """
        path = self.path(name)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            for file, expected in manifest.items():
                if file.startswith("/") or ".." in file.split("/"):
                    return f"{path / 'manifest.json'} names {file}, which is not in the checkpoint"
                if not (path / file).exists():
                    return f"{path / file} is missing"
                if _digest(path / file) != expected:
                    return f"{path / file} is not as it was written"
        except ValueError as error:
            return f"{path / 'manifest.json'} is not as it was written ({error})"
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
            if wrong := self._misfit(name, items["params"]):
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

    def _misfit(self, name: int | str, params: Any) -> str | None:
        """How the parameters of a checkpoint differ from these abstract ones, or None."""
        there = _shapes(ocp.StandardCheckpointHandler().metadata(self.path(name) / "state" / "params").tree)
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
        whole, or None: it is that of another run, or of another version of this program."""
        path = self.path(name)
        try:
            if changed := conflicts(self.config(name), config):
                return f"{path} is that of another run: its {', '.join(changed)} is not the same"
            step = self.progress(name).get("step")
            if not path.name.startswith(f"{step:08d}") or not (path / "state" / "optimizer").exists():
                return f"{path} is not one that training goes on from"
            if tokenizer is not None and self.file(name, "tokenizer.model") != tokenizer:
                return f"{path} is that of another tokenizer than {self.folder.parent / 'tokenizer.model'}"
            return self._misfit(name, params)
        except UserError as error:
            return str(error)
        except OSError as error:
            where, why = error.filename or path, error.strerror or error
            raise UserError(f"{where} cannot be read ({why}); see to that, then run the same command again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path} is not one of this program ({type(error).__name__}: {' '.join(str(error).split())[:200]})"

    def average(self, last: int) -> list[int]:
        """Save the mean of the parameters of the last `last` checkpoints, by step, as 'average'; returns the steps."""
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
        files = {f: (self.path(steps[-1]) / f).read_bytes() for f in ("config.json", "tokenizer.model")}
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
    with writing(path):
        if path.exists() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with phase(f"renaming {path.name}"):
            temporary.replace(path)


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

    `checkpoint` is 'best', 'last', 'average' or a step; by default the average if one was made, else the best on dev
    BLEU. Raises `UserError` where there is none.
    """
    checkpoints = Checkpoints(workdir)

    def read(name: int | str) -> tuple[Model, Params]:
        model = encoder_decoder(checkpoints.config(name).model, checkpoints.progress(name)["vocab_size"])
        return model, checkpoints.params(name)

    return checkpoints.read(checkpoint, read)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in keys): tuple(leaf.shape) for keys, leaf in leaves}


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
