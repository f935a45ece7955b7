"""The checkpoints of a workdir: which are there, which one is chosen, save, average, prune."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from etils import epath

from transformer.checkpoint.arrays import Arrays
from transformer.checkpoint.averaging import mean
from transformer.checkpoint.folders import clear, remove, replace_average, set_aside
from transformer.checkpoint.layout import (
    AVERAGE,
    INTERRUPTED,
    NEXT,
    SAVED,
    folder_of,
    of_training,
    once_saved,
    unfinished,
)
from transformer.checkpoint.opened import Checkpoint, Removed, again
from transformer.checkpoint.saving import Saving, require_needed
from transformer.config import UserError, whole_number
from transformer.files import UNFINISHED, Lock, refuse_links, replace, sealed, writing
from transformer.judging import Judged, best_of
from transformer.model import Model, Params
from transformer.phases import phase
from transformer.streams import to_json

log = logging.getLogger("transformer")
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one workdir (a local folder, or a bucket such as gs://...)."""

    def __init__(self, workdir: str | epath.Path, lock: Lock | None = None):
        """`lock`: held by whoever writes here; checked before each write."""
        self.folder = folder_of(workdir)
        self._arrays = Arrays(self.folder)
        self._lock = lock
        self._saving: Saving | None = None
        self._warned: set[int | str] = set()

    def path(self, name: int | str) -> epath.Path:
        path = self.folder / (name if isinstance(name, str) else f"{name:08d}")
        if name == AVERAGE and not sealed(path) and sealed(self.folder / NEXT):
            return self.folder / NEXT
        return path

    def complete(self, name: int | str) -> bool:
        return sealed(self.path(name))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.exists():
            return []
        names = [path.name for path in self.folder.iterdir() if path.name.isdecimal()]
        for name in names:
            if not of_training(name) and name not in self._warned:
                log.warning("%s is passed over: training names its checkpoints by eight digits", self.folder / name)
                self._warned.add(name)
        return sorted(int(name) for name in names if of_training(name) and self.complete(name))

    def states(self) -> list[int | str]:
        """Names of all complete checkpoints that training can go on from, by their step: those of `steps`, and those
        of runs that were interrupted since the last of them."""
        steps = self.steps()
        waiting = {}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            number = path.name.removesuffix(INTERRUPTED)
            interrupted = number != path.name and of_training(path.name)
            if interrupted and self.complete(path.name) and int(number) > max(steps, default=-1):
                waiting[int(number)] = path.name
        return [*steps, *(waiting[step] for step in sorted(waiting))]

    def once_saved(self, every: int) -> str | None:
        """What shows that a run saved checkpoints, one in so many updates, whether they are there now or not."""
        return once_saved(self.folder, every)

    def open(self, checkpoint: str | int | None = None, judged: Judged | None = None) -> Checkpoint:
        """The checkpoint that `choose` gives."""
        return self.at(self.choose(checkpoint, judged))

    def at(self, name: int | str) -> Checkpoint:
        """The checkpoint of this name. Raises `Removed` if it is not there."""
        return Checkpoint(name, self.path(name), self._arrays)

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
        return best_of(scored, judged)

    def choose(self, checkpoint: str | int | None = None, judged: Judged | None = None) -> int | str:
        """The name behind 'best', 'last', 'average' or a step; by default the average if there, else the best.

        `judged`: what to judge by, instead of what training did. Warns where that average, which nobody asked for by
        name, is of an earlier time than the last checkpoint.
        """
        steps = self.steps()
        workdir = self.folder.parent
        if checkpoint is None and steps and self.complete(AVERAGE):
            self._warn_of_an_old_average(steps[-1])
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

    def _warn_of_an_old_average(self, last: int) -> None:
        """Warn where the average is of an earlier time than step `last`."""
        workdir, averaged = self.folder.parent, self.at(AVERAGE).progress["step"]
        if averaged < last:
            log.warning(
                "%s: its average ends at step %d, but training went on to %d; make it anew with: "
                "python -m transformer average %s",
                *(workdir, averaged, last, workdir),
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
        require_needed({"progress": progress, "files": files, "items": items})
        self.abandon()
        if jax.process_count() == 1:
            self.make_folder(name)
        path = self.folder / NEXT if name == AVERAGE else self.path(name)
        # Written down now: the caller goes on counting while the arrays are being saved.
        progress = dict(progress)
        files = {**files, "progress.json": (to_json(progress, indent=2) + "\n").encode()}

        def then(certain: bool) -> None:
            if name == AVERAGE:
                replace_average(self.folder)
                return
            replace(self.folder.parent / SAVED, f"{path.name}\n".encode())
            if certain:
                with phase(f"pruning after {path.name}"):
                    self.prune(keep_last, keep_every, progress.get("run"))

        saving = Saving(path, self._arrays, files, good=good, check=self._check_lock, then=then)
        saving.start(items)
        self._saving = saving

    def confirm(self) -> None:
        """Let the checkpoint that is being saved be sealed: what came after it was good."""
        if self._saving is not None:
            self._saving.confirm()

    def abandon(self) -> None:
        """Remove the checkpoint that is being saved, unless `confirm` came first: what came after it was not good."""
        if self._saving is not None:
            self._saving.reject()
        self.wait()

    def wait(self) -> None:
        """Wait until the last save is complete; raises if it failed."""
        if self._saving is not None:
            self._saving.join()
            saving, self._saving = self._saving, None
            saving.raise_failure()

    def make_folder(self, name: int | str) -> None:
        """An empty folder for a checkpoint, marked as unfinished. A new average is written beside the old one."""
        refuse_links(self.folder)
        self._check_lock()
        path = self.path(name)
        with writing(path):
            if name == AVERAGE:
                replace_average(self.folder)
                path = self.folder / NEXT
            clear(path)
            path.mkdir(parents=True)
            (path / UNFINISHED).write_bytes(f"{socket.gethostname()} {os.getpid()}\n".encode())

    def discard(self, name: int | str) -> None:
        """Give a damaged checkpoint another name, under which it counts no longer; all of it stays."""
        refuse_links(self.folder)
        self._check_lock()
        set_aside(self.path(name))

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
            unneeded = [path for path in there if of_training(path.name) and path.name not in needed]
            unneeded = [path for path in unneeded if unfinished(path) or self._of(path, run)]
        except (UserError, OSError) as error:
            log.warning("older checkpoints are not removed: %s", error)
            return
        self._check_lock()
        for path in unneeded:
            try:
                remove(path)
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
        opened = [self.at(step) for step in steps]
        params = mean(opened)
        files = opened[-1].files()
        progress = {
            "step": steps[-1],
            "vocab_size": opened[-1].progress["vocab_size"],
            "averaged_steps": steps,
            "trainable": False,
        }
        self.save(AVERAGE, {"params": params}, progress=progress, files=files)
        self.wait()
        return steps

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()


def load(workdir: str, checkpoint: str | int | None = None) -> tuple[Model, Params]:
    """The model of a workdir and its parameters, ready for `model.apply(params, ...)`.

    `checkpoint` is 'best', 'last', 'average' or a step; by default the average if one was made, else the best one.
    Raises `UserError` where there is none.
    """
    return Checkpoints(workdir).read(checkpoint, lambda opened: (opened.model, opened.params()))


def _advice(workdir: epath.Path) -> str:
    """What to do where no checkpoint is in a workdir."""
    if workdir.is_file():
        return "it is a file; give the folder that train.py made, unpacked"
    above = next((path for path in (workdir, workdir.parent) if path.name == "checkpoints"), None)
    return f"give the workdir itself: {above.parent}" if above else "train first, or check the path"
