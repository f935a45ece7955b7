"""The main job on one page: update, evaluate, save."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax

from transformer.checkpoint import Checkpoints, interrupted
from transformer.config import Interrupted, UserError, to_json
from transformer.files import Lock, path_of
from transformer.model.functional import finite
from transformer.phases import phase
from transformer.training.feed import Feed
from transformer.training.flops import peak
from transformer.training.optimizer import learning_rate
from transformer.training.processes import all_or_none, first
from transformer.training.progress import Display, Progress, Trace, Watch, clock
from transformer.training.records import Records
from transformer.training.sharding import make_mesh
from transformer.training.start import Setup, banner, begin, require_same_inputs
from transformer.training.step import TrainState, left_out, program
from transformer.training.stopping import StopPoll, StopRequested, StopSignals
from transformer.training.task import Task

log = logging.getLogger("transformer")

PREFETCH = 4  # batches read ahead, by two threads

Scores = dict[str, float | str]


class Diverged(UserError):
    """The numbers of a run are no longer finite."""


class Rollback(Exception):
    """Update `step` was not finite. The run goes back to its last checkpoint and leaves that update out."""

    def __init__(self, step: int):
        self.step = step


def train(task: Task, workdir: str, *, profile: tuple[int, int] | None = None, lock: Lock | None = None) -> Scores:
    """Train to update `train.steps`, starting from the last checkpoint in the workdir. Returns the last scores.

    `profile`: the first and the last update of a trace that is written to the workdir. `lock`: the lock of the workdir
    (see `hold`), checked before each write. Raises `Interrupted` after SIGINT, SIGTERM or SIGHUP, once the state is
    saved, and `UserError` if the run diverges or cannot start.
    """
    folder = path_of(workdir)
    with StopSignals() as signals:
        batches, mesh = task.batches(), make_mesh(task.config.mesh)
        update_program = program(task.objective, task.config.train, mesh)
        require_same_inputs(task)
        banner(task, batches, update_program)
        setup = Setup(task, folder, Checkpoints(folder, lock), lock, batches, update_program, signals)
        broken_updates: set[int] = set()
        while True:
            try:
                return train_from_checkpoint(setup, profile, broken_updates)
            except Rollback as rollback:
                broken_updates.add(rollback.step)


def train_from_checkpoint(setup: Setup, profile: tuple[int, int] | None, broken_updates: set[int]) -> Scores:
    """Train from the last checkpoint, or from scratch, to the end. Returns the last scores.

    Leaves out the `broken_updates`, and saves their numbers in each checkpoint. Raises `Rollback` after an update that
    is not finite if `train.non_finite` is "rollback".
    """
    t = setup.task.config.train
    state, progress = begin(setup)
    progress.left_out |= broken_updates
    step, over = int(state.step), progress.judge.over(t.patience, t.stop_at)
    # `owed`: the evaluation of the last update was interrupted. It comes first, even if training is complete.
    if progress.owed is None and (step >= t.steps or over):
        if first():
            setup.checkpoints.prune(t.keep_last, t.keep_every, progress.run)
        what = "train.steps or train.patience, or change train.stop_at,"
        log.info("%s is trained already, to step %d; raise %s to go on", setup.folder, step, what)
        return {}
    return Training(setup, state, progress, profile).run()


class Pending(NamedTuple):
    """An update that has been started and whose metrics have not been read."""

    step: int
    metrics: Mapping[str, Any]
    stop_signal: Callable[[], int]
    """Returns the number of the stop signal that a process had received when this update was started, or 0."""


class Training:
    """The updates of a run. The metrics of an update are read after the next one has been started."""

    def __init__(self, setup: Setup, state: TrainState, progress: Progress, profile: tuple[int, int] | None):
        self.setup, self.state, self.progress = setup, state, progress
        self.start, t = int(state.step), setup.task.config.train
        self.feed = Feed(setup.batches, setup.program.mesh, t.accumulate)
        recorded = self.start if progress.owed is None else self.start - 1
        with all_or_none():
            self.records = Records(setup.folder if first() else None, recorded, setup.lock)
            self.display = Display(self.start, t.steps)
        self.trace = Trace(profile, self.start, t.steps, setup.folder)
        self.watch, self.poll_stop = Watch(), StopPoll(setup.program.mesh, setup.signals)
        self.began = time.monotonic()
        self.pending: Pending | None = None
        self.compiled: set[tuple] = set()
        """The batch shapes that the update has been compiled for."""
        self.scores: Scores = {}
        self.stop_signal = 0
        self.over = ""
        """Why the run ends before its last update (`Judge.over`)."""
        self.unproven: int | None = self.start
        """The step that the run started from, until a first update from there is finite; then None."""

    def run(self) -> Scores:
        """Make the updates to the end of training. Returns the last scores."""
        t, step = self.setup.task.config.train, self.start
        stream = self.feed.stream(step, t.steps, PREFETCH)
        try:
            if self.progress.owed is not None:
                self.after_update(step, self.progress.owed)
            while step < t.steps and not self.over:
                step += 1
                self.start_update(step, stream)
                self.after_update(step)
            with all_or_none():  # no process ends while another one is writing
                self.records.close()
                self.setup.checkpoints.wait()
        finally:
            self.trace.stop(step)
            self.display.close()
            try:
                self.records.close()
            finally:
                self.setup.checkpoints.wait()
        log.info(
            "done in %s; %d programs compiled for %d batch shapes; checkpoints in %s",
            *(clock(time.monotonic() - self.began), self.setup.program.update._cache_size(), len(self.compiled)),
            self.setup.checkpoints.folder,
        )
        return self.scores

    # ---- An update --------------------------------------------------------------------------------------------------
    def start_update(self, step: int, stream: Iterator[Any]) -> None:
        """Start update `step`, then collect the metrics of the update before it."""
        if step == self.trace.first:
            self.collect()
            self.trace.start()
        host_batch = next(stream)
        shape = tuple(global_shape for global_shape, _ in host_batch.values())
        new = shape not in self.compiled and step not in self.progress.left_out
        if new:
            self.before_compiling(step, shape)
        if step in self.progress.left_out:
            self.state, metrics = left_out(self.state), {}
        else:
            batch, before = self.feed.put(host_batch), time.monotonic()
            self.state, metrics = self.setup.program.update(self.state, batch)
        if new:  # the call returns after compiling, but does not wait for the update
            took = time.monotonic() - before
            log.info("step %d: compiled in %.1f s", step, took)
            self.progress.interval.leave_out(took)
        self.collect()
        self.pending = Pending(step, metrics, self.poll_stop())
        if step == self.trace.last:
            jax.block_until_ready(metrics)
            self.trace.stop(step)
            self.progress.interval.restart_clock()

    def before_compiling(self, step: int, shape: tuple) -> None:
        """Log the new batch shape. Stop here if a stop signal has come, rather than after the compilation."""
        if self.pending:
            self.collect()
            if self.stop_signal:
                self.after_update(step - 1)
        elif step - 1 == self.start:  # nothing to save: no update was made
            self.stop_signal = self.poll_stop()()
            if self.stop_signal:
                self.stop(self.start)
        self.compiled.add(shape)
        count, total = len(self.compiled), len(self.setup.batches.shapes)
        log.info("step %d: compiling batch shape %s (%d of %d)", step, shape[0], count, total)

    def collect(self, write: bool = True) -> dict[str, float]:
        """Wait for the metrics of the pending update and add them to the means since the last log entry.

        Returns a log entry if one is due, else {}. `write`: whether to write the entry; if not, the caller does, once
        it has the scores.
        """
        if self.pending is None:
            return {}
        (step, metrics, stop_signal), self.pending = self.pending, None
        t, interval = self.setup.task.config.train, self.progress.interval
        values = {name: float(value) for name, value in metrics.items()}
        if values:
            self.add_metrics(step, values)
        self.display.advance(step)
        self.stop_signal = stop_signal()
        if not interval.sums or not (step % t.log_every == 0 or step == t.steps):
            return {}
        mesh, d_model = self.setup.program.mesh, self.setup.task.objective.model.config.d_model
        rate = learning_rate(step, t, d_model)
        means = interval.close((peak(mesh.devices.flat[0]) or 0.0) * mesh.size)
        entry = {**means, "learning_rate": float(rate), "epoch": self.setup.batches.locate(step - 1)[0]}
        seconds = (time.monotonic() - self.began) / max(step - self.start, 1)
        self.display.show(step, entry, seconds * (t.steps - step))
        if write:
            self.records.write(step, entry)
        return entry

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of an update to the means, or handle a loss or gradient that is not finite."""
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            self.progress.skipped += 1
            handle_not_finite(self.setup, step, values, self.progress, self.unproven)
            return
        self.unproven = None
        self.setup.checkpoints.confirm()  # a finite update from its state shows that the last checkpoint is good
        if usual := self.watch.jump(values["loss"]):
            log.warning(
                "step %d: the loss jumped to %.3f, from about %.3f; its batch: %s",
                *(step, values["loss"], usual, self.setup.task.lines(step - 1)),
            )
        self.progress.interval.add(values, self.setup.task.objective.flops(self.setup.batches.shape(step - 1)))

    # ---- After an update --------------------------------------------------------------------------------------------
    def after_update(self, step: int, owed: dict[str, float] | None = None) -> None:
        """Evaluate if it is due, then save the state with the scores if that is due.

        `owed`: the log entry of an update that was saved before its evaluation was interrupted. Raises `Interrupted`
        if a stop signal has come.
        """
        t = self.setup.task.config.train
        due = owed is not None or step % t.eval_every == 0 or step == t.steps
        entry = owed if owed is not None else self.collect(write=False) if due else {}
        evaluated = due and not self.stop_signal and self.evaluate(step)
        better = evaluated and self.judge(step, entry)
        complete, last = evaluated or not due, bool(self.over) or step == t.steps
        if evaluated and last and (wrong := first_not_finite(self.scores)):
            what = f"after update {step} {wrong} is {self.scores[wrong]}"
            raise diverged(self.setup.checkpoints, what, self.unproven)
        if complete and (step % t.checkpoint_every == 0 or better or last):
            self.collect()
            self.save_checkpoint(step, evaluated, last)
        elif self.stop_signal and owed is None:
            self.collect()
            self.save(interrupted(step), step, None, **({} if complete else {"owed": entry}))
        if self.stop_signal:
            self.stop(step)
        if self.over:
            log.info("step %d: %s, stopping early", step, self.over)

    def stop(self, step: int) -> NoReturn:
        """Raise `Interrupted`. The state after update `step` is already saved, or the run has just started from it."""
        with all_or_none():
            self.records.close()
            self.setup.checkpoints.wait()
        where = f"after update {step}; the same command goes on from there"
        if not step:
            where = "before the first update; nothing was saved, the same command starts again"
        raise Interrupted(f"{signal.Signals(self.stop_signal).name}: stopped {where}", self.stop_signal)

    def evaluate(self, step: int) -> bool:
        """Set `scores`. Returns False if a stop signal interrupted the evaluation."""
        try:
            with phase(f"evaluation at step {step}"), self.setup.signals.interruptible():
                self.scores = dict(self.setup.task.evaluate(self.state.params, self.setup.program.mesh, step))
        except StopRequested as request:
            self.stop_signal = request.number
            return False
        finally:
            self.progress.interval.restart_clock()
        return True

    def judge(self, step: int, entry: Mapping[str, float]) -> bool:
        """Log the scores. Returns whether they are the best so far. Sets `over`."""
        scores, judge, t = self.scores, self.progress.judge, self.setup.task.config.train
        if entry or scores:
            self.records.write(step, {**entry, **scores})
        if scores:
            shown = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in scores.items()}
            log.info("step %d  %s", step, "  ".join(f"{name} {value}" for name, value in shown.items()))
        if not judge.judges(scores):
            return False
        better = judge.better(scores)
        self.over = judge.over(t.patience, t.stop_at)
        return better

    # ---- Saving -----------------------------------------------------------------------------------------------------
    def save_checkpoint(self, step: int, evaluated: bool, last: bool) -> None:
        """Save the state after update `step`, with its scores if it was `evaluated`.

        The next update shows whether the state is good; at the end of the run, finite scores do, unless they are those
        of a moving average. Raises `UserError` if the last checkpoint of the run is not good.
        """
        t, checkpoints = self.setup.task.config.train, self.setup.checkpoints
        good = last and evaluated and bool(self.scores) and not first_not_finite(self.scores) and not t.ema_decay
        self.save(step, step, self.scores if evaluated else None, keep=(t.keep_last, t.keep_every), good=good)
        if last and not good:
            if wrong := self.not_finite_after(step):
                raise diverged(checkpoints, f"{wrong} from the parameters that update {step} made", self.unproven)
            checkpoints.confirm()

    def save(
        self,
        name: int | str,
        step: int,
        scores: Scores | None,
        keep: tuple[int | None, int | None] | None = None,
        good: bool = False,
        **more: Any,
    ) -> None:
        """Save the state after update `step` as checkpoint `name`. `more`: further entries of progress.json.

        `keep`: `train.keep_last` and `train.keep_every`; None deletes no older checkpoint. `good`: whether it
        is known that the state is good; if not, the next finite update shows it.
        """
        setup = self.setup
        progress = self.progress.saved(step, *setup.batches.locate(step), scores, **more)
        if not finite(self.state.params):
            what = f"update {step} made parameters that are not finite"
            raise diverged(setup.checkpoints, what, self.unproven)
        with all_or_none():
            self.records.flush()
            setup.checkpoints.abandon()  # an earlier save that no finite update has followed
            if first():
                setup.checkpoints.make_folder(name)
        items = {"params": self.state.params, "optimizer": self.state.optimizer}
        files = {**setup.task.files, "config.json": to_json(setup.task.config).encode()}
        options = {} if keep is None else {"keep_last": keep[0], "keep_every": keep[1], "good": good}
        setup.checkpoints.save(name, items, progress=progress, files=files, **options)

    def not_finite_after(self, step: int) -> str:
        """Try one more update from the final state and drop its result. Returns what is not finite, or "".

        Without a development set, this is the only test of the final state.
        """
        batch = self.feed.put(self.feed.read(step - 1))
        values = {name: float(x) for name, x in self.setup.program.update(self.state, batch)[1].items()}
        loss, norm = values["loss"], values["gradient_norm"]
        return "" if math.isfinite(loss) and math.isfinite(norm) else f"the loss is {loss} and the gradient norm {norm}"


# ---- Numbers that are not finite -------------------------------------------------------------------------------------
def first_not_finite(scores: Scores) -> str:
    """The name of the first score that is not finite, or ""."""
    return next((name for name, x in scores.items() if isinstance(x, float) and not math.isfinite(x)), "")


def handle_not_finite(
    setup: Setup, step: int, values: Mapping[str, float], progress: Progress, unproven: int | None
) -> None:
    """Apply `train.non_finite` to an update whose loss or gradient is not finite.

    Returns if the update was skipped. Raises `Rollback` for "rollback", and `UserError` for "stop" or when there were
    more than `train.non_finite_limit` such updates. `unproven`: see `diverged`.
    """
    t, count = setup.task.config.train, progress.skipped + len(progress.left_out)
    what = f"update {step}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}"
    if t.non_finite == "stop":
        raise diverged(setup.checkpoints, what, unproven)
    if count > t.non_finite_limit:
        raise diverged(
            setup.checkpoints,
            f"{what}; that makes {count} such updates (train.non_finite_limit = {t.non_finite_limit})",
            unproven,
        )
    log.warning("%s (%d of %d allowed); its batch: %s", what, count, t.non_finite_limit, setup.task.lines(step - 1))
    if t.non_finite == "rollback":
        setup.checkpoints.abandon()
        log.warning("going back to the last checkpoint, to leave update %d out", step)
        raise Rollback(step)


def diverged(checkpoints: Checkpoints, what: str, unproven: int | None = None) -> Diverged:
    """The error that ends a run whose numbers are no longer finite. `what`: what is not finite.

    `unproven`: the step that the run started from, if no update since then was finite. The checkpoint of that step is
    then not named as good.
    """
    checkpoints.abandon()
    names = {name: int(str(name).partition(".")[0]) for name in checkpoints.states()}
    good = [name for name, at in names.items() if at != unproven]
    where = f"the last good checkpoint is {checkpoints.path(good[-1])}" if good else "no checkpoint was saved yet"
    if bad := [checkpoints.path(name) for name, at in names.items() if at == unproven]:
        where = f"{where if good else 'no good checkpoint was saved'} (no update from {bad[-1]} was finite)"
    return Diverged(
        f"{what}; training stopped, {where}. Lower train.peak_learning_rate, raise train.warmup_steps or set "
        "train.clip_norm"
    )
