"""The checkpoints of a workdir: list, choose, open, save, average and prune them."""

from __future__ import annotations

import logging
import operator
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
    exported_form,
    folder_of,
    is_training_name,
    once_saved,
    seed_folder,
    seeds_in,
    unfinished,
)
from transformer.checkpoint.opened import Checkpoint, Removed, again
from transformer.checkpoint.saving import Saving, require_name, require_needed
from transformer.config import UserError, shown, whole_number
from transformer.files import UNFINISHED, Lock, refuse_links, replace, sealed, writing
from transformer.judging import Judged, best_of
from transformer.phases import phase
from transformer.streams import to_json

log = logging.getLogger("transformer")
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one workdir (a local folder, or a bucket such as gs://...)."""

    def __init__(self, workdir: str | epath.Path, lock: Lock | None = None):
        """`lock`: the lock that a writer holds; checked before each write. Raises `UserError` if the workdir cannot be
        reached."""
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
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.name.isdecimal()]
        for name in names:
            if not is_training_name(name) and name not in self._warned:
                log.warning("%s is ignored: training names its checkpoints with eight digits", self.folder / name)
                self._warned.add(name)
        return sorted(int(name) for name in names if is_training_name(name) and self.complete(name))

    def states(self) -> list[int | str]:
        """Names of the complete checkpoints that training can resume from, in the order of their steps.

        They are those of `steps`, and after them those that interrupted runs saved at later steps.
        """
        steps = self.steps()
        later = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            number = path.name.removesuffix(INTERRUPTED)
            interrupted = number != path.name and is_training_name(path.name)
            if interrupted and self.complete(path.name) and int(number) > max(steps, default=-1):
                later[int(number)] = path.name
        return [*steps, *(later[step] for step in sorted(later))]

    def once_saved(self, every: int) -> str | None:
        """See `layout.once_saved`."""
        return once_saved(self.folder, every)

    def open(self, checkpoint: str | int | None = None, judged: Judged | None = None) -> Checkpoint:
        """Open the checkpoint that `choose` selects. Raises `UserError` or `Removed`."""
        return self.at(self.choose(checkpoint, judged))

    def at(self, name: int | str) -> Checkpoint:
        """Open the checkpoint with this step or name. Raises `Removed` if it does not exist."""
        require_name(name)
        return Checkpoint(name, self.path(name), self._arrays)

    def read(self, checkpoint: str | int | None, reader: Callable[[Checkpoint], T], judged: Judged | None = None) -> T:
        """Call `reader` with the checkpoint that `choose` selects, and return its result.

        If the checkpoint is removed or replaced meanwhile, by training or by a new average, choose again and repeat.
        """
        return again(lambda: reader(self.open(checkpoint, judged)))

    def newest_whole(self) -> Checkpoint | None:
        """The newest undamaged checkpoint that training saved, or None."""
        return next((opened for name in reversed(self.states()) if not (opened := self.at(name)).damage()), None)

    def best(self, unreadable: set[int] | None = None, judged: Judged | None = None) -> int | None:
        """The step of the best checkpoint (the earliest of equals), or None if none was evaluated.

        Only checkpoints whose scores are comparable with those of the newest one count. `judged`: the scores to rank
        by; None = those that training used. Steps whose scores cannot be read are added to `unreadable`, with a
        warning; without `unreadable` they raise `UserError`.
        """
        scored = {}
        for step in self.steps():
            if self._misnamed(step):
                continue
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
        """Resolve 'best', 'last', 'average', a step or a name to a step or name; None = the average, else the best.

        Without evaluated checkpoints, None means the last. Passes over copies whose name is not their step. `judged`:
        the scores to rank by; None = those that training used. Warns if the average is chosen by default and is older
        than the last checkpoint. Raises `UserError` if there is no such checkpoint.
        """
        states = [name for name in self.states() if not self._misnamed(name)]
        steps = [name for name in states if not isinstance(name, str)]
        workdir = self.folder.parent
        if checkpoint is None and steps and self.complete(AVERAGE):
            self._warn_of_an_old_average(steps[-1])
        try:
            if isinstance(checkpoint, bool):
                raise TypeError
            if checkpoint is not None and not isinstance(checkpoint, str):
                checkpoint = str(operator.index(checkpoint))
        except TypeError:
            raise UserError(f"checkpoint = {shown(checkpoint)}: give best, last, average or a step") from None
        if checkpoint == AVERAGE or (checkpoint is None and self.complete(AVERAGE)):
            if not self.complete(AVERAGE):
                raise UserError(f"{workdir}: no average yet; make one with: python -m transformer average {workdir}")
            return AVERAGE
        if not states and self.complete(AVERAGE):  # as in the workdir of an imported model
            raise UserError(f"--checkpoint {checkpoint}: not in {workdir}; it has the checkpoint average alone")
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
        """Warn if the average is older than step `last`."""
        workdir, averaged = self.folder.parent, self.at(AVERAGE).progress["step"]
        if averaged < last:
            log.warning(
                "%s: the average ends at step %d, but training went on to %d; update the average with: "
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
        """Start saving. Returns once the arrays are copied off the devices, so their buffers may be donated.

        `good`: the checkpoint is certainly good; then it is sealed as soon as its arrays have been read back. Else
        `confirm` or `wait` seals it, and `abandon` or the next save removes it.

        After sealing, `keep_last` removes older checkpoints of the same run, except the best one and those whose step
        is a multiple of `keep_every`. If `wait` sealed the checkpoint without confirmation, older ones stay. If a save
        fails, the next save or `wait` raises the error.

        With several processes, every process calls this and saves the arrays on its own devices, to a folder that all
        of them can access. Process 0 must create this folder first (`make_folder`). Process 0 also does the rest.

        Raises `ValueError`, before anything is written, if `progress`, `files` or `items` lacks an entry that readers
        need, or has one that they do not accept.
        """
        require_needed(name, {"progress": progress, "files": files, "items": items})
        self.abandon()
        if jax.process_count() == 1:
            self.make_folder(name)
        path = self.folder / NEXT if name == AVERAGE else self.path(name)
        # Serialise now: the caller changes its progress while the arrays are being saved.
        progress = dict(progress)
        files = {**files, "progress.json": (to_json(progress, indent=2) + "\n").encode()}

        def after_sealing(certain: bool) -> None:
            if name == AVERAGE:
                replace_average(self.folder)
                return
            replace(self.folder.parent / SAVED, f"{path.name}\n".encode())
            if certain:
                with phase(f"pruning after {path.name}"):
                    self.prune(keep_last, keep_every, progress.get("run"))

        saving = Saving(path, self._arrays, files, good=good, check=self._check_lock, after_sealing=after_sealing)
        saving.start(items)
        self._saving = saving

    def confirm(self) -> None:
        """Seal the checkpoint that is being saved: the update after it was good."""
        if self._saving is not None:
            self._saving.confirm()

    def abandon(self) -> None:
        """Remove the checkpoint that is being saved, unless it was confirmed: the update after it was not good."""
        if self._saving is not None:
            self._saving.reject()
        self.wait()

    def wait(self) -> None:
        """Wait until the last save is complete. Raises `UserError` if it failed."""
        if self._saving is not None:
            self._saving.join()
            saving, self._saving = self._saving, None
            saving.raise_failure()

    def make_folder(self, name: int | str) -> None:
        """Create an empty folder for a checkpoint, marked as unfinished. A new average goes beside the old one.

        Raises `UserError` if it cannot be created.
        """
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
        """Rename a damaged checkpoint, so that it is ignored. All of its files stay."""
        refuse_links(self.folder)
        self._check_lock()
        set_aside(self.path(name))

    def prune(self, keep_last: int | None, keep_every: int | None, run: str | None) -> None:
        """Remove the checkpoints of this run that need not be kept, and unfinished saves.

        Checkpoints of another `run` stay. A checkpoint that cannot be removed stays, too, with a warning, since the new
        one is complete anyway. Only the run that saves here may call this, between its saves.
        """
        refuse_links(self.folder)
        try:
            steps, states, unreadable = self.steps(), self.states(), set()
            kept = {*states[-1:], *(steps if keep_last is None else steps[-keep_last:])}
            if keep_last is not None:
                kept |= {self.best(unreadable), *unreadable}
            kept |= {step for step in steps if keep_every and step % keep_every == 0}
            # `kept` has an interrupted checkpoint only if it is the newest state. Remove all others.
            needed = {self.path(name).name for name in kept if name is not None}
            folders = list(self.folder.iterdir()) if self.folder.is_dir() else []
            unneeded = [path for path in folders if is_training_name(path.name) and path.name not in needed]
            unneeded = [path for path in unneeded if unfinished(path) or self._belongs_to(path, run)]
        except (UserError, OSError) as error:
            log.warning("older checkpoints are not removed: %s", error)
            return
        self._check_lock()
        for path in unneeded:
            try:
                remove(path)
            except OSError as error:
                log.warning("older checkpoints are not removed: %s", error)

    def _belongs_to(self, path: epath.Path, run: str | None) -> bool:
        """Whether a checkpoint belongs to `run`. Earlier versions stored no run: those belong to any."""
        try:
            return self.at(path.name).progress.get("run", run) == run
        except UserError:
            return False

    def average(self, last: int) -> list[int]:
        """Save the mean of the parameters of the last `last` checkpoints, by step, as 'average'. Return their steps.

        Training may run at the same time: if it removes one of them, start again with the last ones at that time.
        """
        if type(last) is not int or last < 1:
            raise UserError(f"average the last {shown(last)} checkpoints: give a whole number, at least 1")
        path = self.folder.parent / ".average.lock"
        if not self.steps():
            raise UserError(f"{self.folder.parent}: no complete checkpoint to average")
        refuse_links(path)
        before = self._lock
        with writing(path), Lock(path, "another process averages there; wait until it is done").held() as self._lock:
            try:
                return again(lambda: self._average(last))
            finally:
                self._lock = before

    def _average(self, last: int) -> list[int]:
        opened = self._last_of_one_run(last)
        steps = [checkpoint.name for checkpoint in opened]
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

    def _last_of_one_run(self, last: int) -> list[Checkpoint]:
        """The last `last` checkpoints of the run that the newest one belongs to. A warning names those left out."""
        chosen: list[Checkpoint] = []
        others: list[str] = []
        for step in reversed(self.steps()):
            if len(chosen) == last:
                break
            if not self._misnamed(step):
                opened = self.at(step)
                same = not chosen or opened.same_run(chosen[0])
                (chosen if same else others).append(opened if same else opened.path.name)
        if others:
            log.warning(
                "%s: left out, as their run or tokenizer is not that of %s: %s",
                *(self.folder, chosen[0].path.name, ", ".join(others)),
            )
        if not chosen:
            raise UserError(f"{self.folder.parent}: no complete checkpoint to average")
        return chosen[::-1]

    def _misnamed(self, name: int | str) -> bool:
        """Whether a checkpoint's name is not the step that it holds, as of a copy. Logs a warning, once."""
        try:
            opened = self.at(name)
            step = opened.progress.get("step")
        except UserError:  # removed, or damaged: reported when it is opened
            return False
        misnamed = int(opened.path.name.removesuffix(INTERRUPTED)) != step
        if misnamed and name not in self._warned:
            log.warning("%s is passed over: it holds step %s, not the one in its name", opened.path, step)
            self._warned.add(name)
        return misnamed

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()


def _advice(workdir: epath.Path) -> str:
    """What the user can do if a workdir has no checkpoint."""
    if workdir.is_file():
        return "it is a file; give the folder that train.py made, unpacked"
    seeds = [seed for seed in seeds_in(workdir) if Checkpoints(seed_folder(workdir, seed)).states()]
    if seeds:
        return (
            f"it holds the runs of {len(seeds)} seeds; give the folder of one, such as {seed_folder(workdir, seeds[0])}"
        )
    if (form := exported_form(workdir)) is not None:
        return f"it holds an exported model; import it: python -m transformer import {workdir} NEW --from {form}"
    above = next((path for path in (workdir, workdir.parent) if path.name == "checkpoints"), None)
    hub = "" if workdir.parent.exists() else " (a model of the Hub: download it, then import it)"
    return f"give the workdir itself: {above.parent}" if above else f"train first, or check the path{hub}"
