"""The main job on one page: set up, resume or start, update, evaluate, save."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from transformer.checkpoint import Checkpoint, Checkpoints, interrupted, with_sharding
from transformer.config import (
    KINDS,
    MOVABLE,
    Config,
    Interrupted,
    ModelConfig,
    UserError,
    conflicts,
    differences,
    flatten,
    from_json,
    to_json,
)
from transformer.data.batching import Batches
from transformer.files import Lock, local, path_of, refuse_links, replace, sealed, sweep
from transformer.inference.translator import cores
from transformer.judging import Judge, Judged, upgraded
from transformer.model import Model, Params, encoder_decoder
from transformer.phases import phase
from transformer.training.feed import Feed
from transformer.training.flops import peak, update_flops
from transformer.training.optimizer import learning_rate, optimizer
from transformer.training.processes import agree, all_or_none, first, gather
from transformer.training.progress import Display, Records, clock
from transformer.training.sharding import batch_sharding, check_mesh, make_mesh, place, shardings
from transformer.training.step import (
    Batch,
    TrainState,
    ahead_of_time,
    bytes_needed,
    compiled,
    cut,
    init_state,
    left_out,
)
from transformer.training.stopping import Ask, Asked, Ears

log = logging.getLogger("transformer")

PREFETCH = 4  # batches made ahead, by two threads
# What --batch auto tries; the last one no batch can be cut into.
MICRO_BATCHES = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 2**30)
TOO_MUCH = 2**62  # bytes
# Each of several hosts may have its own cache, and its text elsewhere: the contents are compared.
OWN = ("data.cache_dir", "data.workers", "data.tfds_dir", *MOVABLE)
# What a run makes in its workdir after config.json, which comes first and tells a workdir from other folders.
MADE = ("checkpoints", "metrics.jsonl", "scores.jsonl", "sets", "tensorboard", "tokenizer.model", "tokenizer.sha256")

# Fields of a model that change none of its parameters' shapes.
SHAPELESS = ("dropout", "attention_dropout", "initializer", "attention_kernel", "dtype", "window", "position_offset")


class Task(Protocol):
    """What is trained: a model, its data, its loss and its judge."""

    model: Model
    vocab_size: int
    files: dict[str, bytes]
    """Saved with every checkpoint, by file name."""
    judged: Judged
    """The scores of `evaluate` that judge checkpoints, in the order that they are compared in."""

    def batches(self) -> Batches: ...
    def data_digest(self) -> str: ...
    def content_digests(self) -> dict[str, str]: ...
    def dev_digest(self) -> str: ...
    def scored_with(self) -> dict[str, Any]: ...
    def describe(self) -> Iterator[str]: ...
    def loss(
        self, params: Params, batch: Batch, key: Array | None, *, mesh: Mesh | None = None
    ) -> tuple[Array, dict[str, Array]]: ...
    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]: ...
    def write_sets(self, folder: epath.Path) -> None: ...
    def try_decoding(self, params: Params) -> None: ...
    def lines(self, step: int) -> str: ...


class Ready(NamedTuple):
    """What a run needs and no update changes."""

    task: Task
    config: Config
    folder: epath.Path
    checkpoints: Checkpoints
    lock: Lock | None
    mesh: Mesh
    batches: Batches
    abstract: TrainState
    update: Any
    ears: Ears


class WentBack(Exception):
    """An update broke the numbers; the run goes back to its last checkpoint and leaves that update out."""

    def __init__(self, step: int):
        self.step = step


def train(
    task: Task, config: Config, workdir: str, *, profile: tuple[int, int] | None = None, lock: Lock | None = None
) -> dict[str, float | str]:
    """Train until `config.train.steps`, going on from the workdir's last checkpoint; returns the last evaluation.

    Of the updates `profile`, first and last, a trace is written to the workdir. Sent SIGINT, SIGTERM or SIGHUP the
    run saves its state and raises `Interrupted`. The workdir's `lock` (see `hold`) is checked before each write.
    """
    t, folder = config.train, path_of(workdir)
    with Ears() as ears:
        mesh = make_mesh(config.mesh)
        batches = task.batches()
        tx = optimizer(t, config.model.d_model)
        abstract = jax.eval_shape(lambda: init_state(task.model.init, tx, t.seed))
        update = compiled(task.loss, tx, t.seed, mesh, abstract, skip=t.non_finite == "skip")
        compare(task, config)
        banner(task, config, batches, mesh, abstract)
        ready = Ready(task, config, folder, Checkpoints(folder, lock), lock, mesh, batches, abstract, update, ears)
        broken: set[int] = set()
        while True:
            try:
                return updates(ready, profile, broken)
            except WentBack as back:
                broken.add(back.step)


def updates(ready: Ready, profile: tuple[int, int] | None, broken: set[int]) -> dict[str, float | str]:
    """From the last checkpoint, or the start, to the end; all but the updates `broken`, which become part of the run.

    Raises `WentBack` where an update breaks the numbers and the config says to go back.
    """
    task, config, folder, checkpoints, lock, mesh, batches, abstract, update, ears = ready
    t = config.train

    # ---- State: resume > warm start > scratch -----------------------------------------------------------------------
    digest = task.data_digest()
    state, progress = restore(
        *(checkpoints, abstract, mesh),
        lambda there: there.unfit(config, abstract.params, task.files.get("tokenizer.model")),
    )
    if progress.get("data_digest", digest) != digest:
        raise UserError(f"the training text is not what {folder} was trained on; restore it, or use another --workdir")
    if state is None:
        state = initial(task, config, mesh, abstract)
    start = int(state.step)
    run = progress.get("run") or gather(secrets.token_hex(8))[0]
    machine = machine_of(mesh)
    if changed := other_machine(progress.get("machine"), machine):
        log.info("resuming on another machine (%s): sums may be rounded differently from here on", changed)
    # Nothing is written before all of the above was found right; config.json first: see `MADE`.
    with all_or_none():
        if first():
            if lock is not None:
                lock.check()
            if local(folder):
                sweep(Path(folder))
            for name, content in {"config.json": to_json(config).encode(), **task.files}.items():
                replace(folder / name, content)
            task.write_sets(folder)
    with all_or_none():
        same_folder(folder)
    now = {"dev_digest": task.dev_digest(), "scored_with": task.scored_with()}
    judge = Judge(task.judged, now, upgraded(progress, lambda: checkpoints.open("last").config))
    if judge.begun_anew:
        log.warning(
            "scores do not compare with those before step %d, as %s; the best checkpoint and train.patience begin anew",
            *(start, ", ".join(judge.begun_anew)),
        )
    if first():  # which a run that was killed may not have come to; older ones go once an update was finite
        checkpoints.prune(None, None, run)
    # Where it was interrupted before the evaluation of its last update, that comes first.
    owed = progress.get("owed")
    if owed is None and (start >= t.steps or (t.patience is not None and judge.stale >= t.patience)):
        if first():
            checkpoints.prune(t.keep_last, t.keep_every, run)
        log.info("%s is trained already, to step %d; raise train.steps or train.patience to go on", folder, start)
        return {}
    broken |= set(progress.get("left_out", []))

    # ---- Updates ----------------------------------------------------------------------------------------------------
    feed = Feed(batches, mesh, t.accumulate)
    stream = feed.stream(start, t.steps, PREFETCH)
    recorded = start if owed is None else start - 1
    with all_or_none():
        records, display = Records(folder if first() else None, recorded, lock), Display(start, t.steps)
    interval, watch = Interval(progress.get("interval", {})), Watch()
    scores: dict[str, float | str] = {}
    pending: tuple[int, Any, Callable[[], int]] | None = None
    seen: set[tuple] = set()
    began, stopped, asked, profiling = time.monotonic(), False, 0, False
    doubtful: int | None = start  # a checkpoint from which no update was finite yet
    skipped = progress.get("skipped", 0)
    flops_per_s = (peak(mesh.devices.flat[0]) or 0.0) * mesh.size
    ask = Ask(mesh, ears)
    if profile and not (start < profile[1] and profile[0] <= t.steps):
        log.warning("no trace is written: updates %d to %d are not among %d to %d", *profile, start + 1, t.steps)

    def shape_flops(step: int) -> float:
        return update_flops(config.model, task.vocab_size, *batches.shape(step - 1))

    def settle(write: bool = True) -> dict[str, float]:
        """Take in the metrics of the last update, by now computed while the next one was prepared.

        Where an entry of the log is due it is returned, and written unless there is more to come for it.
        """
        nonlocal pending, asked, skipped, doubtful
        if pending is None:
            return {}
        step, metrics, answer = pending
        pending = None
        values = {name: float(value) for name, value in metrics.items()}
        if values and not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            skipped += 1
            not_finite(ready, step, values, skipped + len(broken), doubtful)
        elif values:
            doubtful = None
            checkpoints.confirm()  # of an earlier step: from what it holds an update was finite
            if usual := watch.jump(values["loss"]):
                log.warning(
                    "step %d: the loss jumped to %.3f, from some %.3f; its batch: %s",
                    *(step, values["loss"], usual, task.lines(step - 1)),
                )
            interval.add(values, shape_flops(step))
        display.advance(step)
        asked = answer()
        if (step % t.log_every == 0 or step == t.steps) and interval.sums:
            rate = learning_rate(
                step, d_model=config.model.d_model, warmup_steps=t.warmup_steps, peak=t.peak_learning_rate
            )
            epoch, _ = batches.locate(step - 1)
            entry = {**interval.close(flops_per_s), "learning_rate": float(rate), "epoch": epoch}
            display.show(step, entry, (time.monotonic() - began) / max(step - start, 1) * (t.steps - step))
            if write:
                records.write(step, entry)
            return entry
        return {}

    def progress_at(step: int, found: dict[str, float | str] | None, **more: Any) -> dict[str, Any]:
        epoch, index = batches.locate(step)
        return {
            "step": step,
            "epoch": epoch,
            "batch_of_epoch": index,
            **judge.progress(found),
            "interval": interval.sums,
            "skipped": skipped,
            "left_out": sorted(broken),
            "vocab_size": task.vocab_size,
            "data_digest": digest,
            "run": run,
            "machine": machine,
            **more,
        }

    def save(name: int | str, progress: dict[str, Any], **options: Any) -> None:
        if not finite(state.params):
            raise diverged(checkpoints, f"update {int(state.step)} made parameters that are not finite", doubtful)
        with all_or_none():
            records.flush()
            checkpoints.abandon()  # one after which no update was finite
            if first():
                checkpoints.make_folder(name)
        items = {"params": state.params, "optimizer": state.optimizer}
        files = {**task.files, "config.json": to_json(config).encode()}
        checkpoints.save(name, items, progress=progress, files=files, **options)

    def broken_after(step: int) -> str:
        """What breaks in an update from the final state, whose outcome nobody keeps; "" if nothing does.

        Without a development set only this shows whether the state is good.
        """
        values = {name: float(x) for name, x in update(state, feed.place(feed.read(step - 1)))[1].items()}
        loss, norm = values["loss"], values["gradient_norm"]
        return "" if math.isfinite(loss) and math.isfinite(norm) else f"the loss is {loss} and the gradient norm {norm}"

    def stop_profiling(step: int) -> None:
        nonlocal profiling
        profiling = False
        jax.profiler.stop_trace()
        log.info("the trace of updates %d to %d is in %s", max(profile[0], start + 1), step, folder / "profile")

    def finish(step: int, owed: dict[str, float] | None = None) -> None:
        """What is due when an update is done: an evaluation, then the save that stores its score.

        `owed`: the entry of the log at an update that is saved already, but whose evaluation was broken off. Raises
        `Interrupted` where the run is to end here.
        """
        nonlocal scores, stopped, asked
        due = owed is not None or step % t.eval_every == 0 or step == t.steps
        entry = owed if owed is not None else settle(write=False) if due else {}
        evaluated, better = False, False
        if due and not asked:
            try:
                with phase(f"evaluation at step {step}"), ears.at_once():
                    found = dict(task.evaluate(state.params, mesh, step))
                scores, evaluated = found, True
            except Asked as signalled:
                asked = signalled.number
            interval.restart_clock()
        if evaluated and (entry or scores):
            records.write(step, {**entry, **scores})
        if evaluated and scores:
            shown = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in scores.items()}
            log.info("step %d  %s", step, "  ".join(f"{name} {value}" for name, value in shown.items()))
        if evaluated and judge.judges(scores):
            better = judge.better(scores)
            stopped = t.patience is not None and judge.stale >= t.patience
        complete, last = evaluated or not due, stopped or step == t.steps
        wrong = [name for name, x in scores.items() if evaluated and isinstance(x, float) and not math.isfinite(x)]
        if wrong and last:
            raise diverged(checkpoints, f"after update {step} {wrong[0]} is {scores[wrong[0]]}", doubtful)
        if complete and (step % t.checkpoint_every == 0 or better or last):
            settle()
            good = evaluated and bool(scores) and not wrong
            progress = progress_at(step, scores if evaluated else None)
            save(step, progress, keep_last=t.keep_last, keep_every=t.keep_every, good=good)
            if last and not good:
                if breaks := broken_after(step):
                    raise diverged(checkpoints, f"{breaks} from the parameters that update {step} made", doubtful)
                checkpoints.confirm()
        elif asked and owed is None:
            settle()
            save(interrupted(step), progress_at(step, None, **({} if complete else {"owed": entry})))
        if asked:
            with all_or_none():
                records.close()
                checkpoints.wait()
            name = signal.Signals(asked).name
            raise Interrupted(f"{name}: stopped after update {step}; the same command goes on from there", asked)
        if stopped:
            log.info("step %d: nothing better than %s in %d evaluations, stopping early", step, judge, judge.stale)

    try:
        if owed is not None:
            finish(start, owed)
        for step in range(start + 1, t.steps + 1):
            if stopped:
                break
            if profile and step == max(profile[0], start + 1) and step <= profile[1]:
                settle()
                if first():
                    jax.profiler.start_trace(str(folder / "profile"), create_perfetto_trace=True)
                    profiling = True
            host_batch = next(stream)
            shape = tuple(whole for whole, _ in host_batch.values())
            new = shape not in seen and step not in broken
            if new:
                if pending:  # who is asked to stop shall not wait for a compilation
                    settle()
                    if asked:
                        finish(step - 1)
                seen.add(shape)
                log.info("step %d: compiling batch shape %s (%d of %d)", step, shape[0], len(seen), len(batches.shapes))
            if step in broken:
                state, metrics = left_out(state), {}
            else:
                batch, before = feed.place(host_batch), time.monotonic()
                state, metrics = update(state, batch)
            if new:  # to compile, unlike to run, is waited for
                took = time.monotonic() - before
                log.info("step %d: compiled in %.1f s", step, took)
                interval.leave_out(took)
            settle()
            pending = (step, metrics, ask())
            if profiling and step == profile[1]:
                jax.block_until_ready(metrics)
                stop_profiling(step)
                interval.restart_clock()
            finish(step)
        with all_or_none():  # no process ends while another still writes
            records.close()
            checkpoints.wait()
    finally:
        if profiling:
            stop_profiling(step)
        display.close()
        try:
            records.close()
        finally:
            checkpoints.wait()
    log.info(
        "done in %s; %d programs compiled for %d batch shapes; checkpoints in %s",
        *(clock(time.monotonic() - began), update._cache_size(), len(seen), checkpoints.folder),
    )
    return scores


def machine_of(mesh: Mesh) -> dict[str, int | str]:
    """What sums are taken on. The bits of an update are the same only where all of this is."""
    return {"cores": cores(), "device": mesh.devices.flat[0].device_kind}


def other_machine(before: Any, now: Mapping[str, int | str]) -> str:
    """How a run's machine differs from the one that it was saved on, in words; "" where it does not, or where a
    checkpoint of an older version does not say."""
    before = before if isinstance(before, dict) else {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name}: {before[name]!r} before, {now[name]!r} now" for name in changed)


def not_finite(ready: Ready, step: int, values: Mapping[str, float], count: int, doubtful: int | None) -> None:
    """What the config says of an update whose loss or gradient is not finite, the `count`-th of the run: returns if it
    was skipped, else raises. `doubtful` is as in `diverged`."""
    t = ready.config.train
    what = f"update {step}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}"
    if t.non_finite == "stop":
        raise diverged(ready.checkpoints, what, doubtful)
    if count > t.non_finite_limit:
        raise diverged(
            ready.checkpoints,
            f"{what}; that makes {count} such updates (train.non_finite_limit = {t.non_finite_limit})",
            doubtful,
        )
    log.warning("%s (%d of %d allowed); its batch: %s", what, count, t.non_finite_limit, ready.task.lines(step - 1))
    if t.non_finite == "rollback":
        ready.checkpoints.abandon()
        log.warning("going back to the last checkpoint, to leave update %d out", step)
        raise WentBack(step)


class Watch:
    """Looks out for jumps of the loss."""

    def __init__(self) -> None:
        self._last: collections.deque[float] = collections.deque(maxlen=50)

    def jump(self, loss: float) -> float | None:
        """The usual loss, if this one lies a tenth above it, and more than it spreads from update to update by far;
        else None."""
        usual = None
        if len(self._last) >= 20:
            mean = float(np.mean(list(self._last)[-10:]))
            spread = float(np.std(np.diff(self._last))) / 2**0.5  # of differences: while the loss falls, too
            usual = mean if loss > mean + max(6 * spread, 0.1 * mean) else None
        self._last.append(loss)
        return usual


@jax.jit
def finite(params: Params) -> Array:
    """Whether all parameters are finite numbers."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def diverged(checkpoints: Checkpoints, what: str, doubtful: int | None = None) -> UserError:
    """The end of a run whose numbers are no longer finite.

    `doubtful`: the step that it went on from, if no update since then was finite. Its checkpoint is not good.
    """
    checkpoints.abandon()
    names = {name: int(str(name).partition(".")[0]) for name in checkpoints.states()}
    good = [name for name, at in names.items() if at != doubtful]
    where = f"the last good checkpoint is {checkpoints.path(good[-1])}" if good else "no checkpoint was saved yet"
    if bad := [checkpoints.path(name) for name, at in names.items() if at == doubtful]:
        where = f"{where if good else 'no good checkpoint was saved'} (no update from {bad[-1]} was finite)"
    return UserError(
        f"{what}; training stopped, {where}. Lower train.peak_learning_rate, raise train.warmup_steps or set "
        "train.clip_norm"
    )


class Interval:
    """Means since the last entry of the log; `sums` travel in the checkpoint, so that resuming loses none."""

    def __init__(self, sums: dict[str, float]):
        self.sums = dict(sums)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the rates what wasn't training."""
        self._began, self._tokens, self._flops = time.monotonic(), 0.0, 0.0

    def leave_out(self, seconds: float) -> None:
        """Leave so many seconds out of the rates."""
        self._began += seconds

    def add(self, values: dict[str, float], flops: float = 0.0) -> None:
        for name in ("loss", "nll"):
            mean = values[name] if name == "loss" else values[name] / max(values["weight"], 1.0)
            self.sums[name] = self.sums.get(name, 0.0) + mean
        self.sums["gradient_norm"] = self.sums.get("gradient_norm", 0.0) + values["gradient_norm"]
        self.sums["updates"] = self.sums.get("updates", 0.0) + 1
        self._tokens += values["tokens"]
        self._flops += flops

    def close(self, peak_flops: float = 0.0) -> dict[str, float]:
        """The means, the source and target tokens a second (padding not counted), the share of the devices' peak rate
        that the model's own arithmetic takes up (where that is known), and a fresh start."""
        n = self.sums.pop("updates")
        means = {name: total / n for name, total in self.sums.items()}
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = {"tokens_per_second": self._tokens / seconds}
        if peak_flops:
            rates["mfu"] = self._flops / seconds / peak_flops
        self.sums = {}
        self.restart_clock()
        return {**means, **rates}


def refuse_other_config(config: Config, workdir: str) -> None:
    """Raise `UserError` if the folder is that of a run with another config, or of something else altogether.

    Differences that may be are logged.
    """
    checkpoints = Checkpoints(workdir)
    folder, steps = checkpoints.folder.parent, checkpoints.steps()
    there = config_of(checkpoints)
    if there is None:
        found = [name for name in MADE if (folder / name).exists()]
        if found:
            raise UserError(
                f"{workdir} is not a workdir of train.py: it has no config.json, but {', '.join(found)}, which "
                "training would overwrite; use another --workdir"
            )
        return
    changed, refused = differences(there, config), conflicts(there, config)
    if refused:
        shown = "; ".join(f"{name} is {old!r} there, {new!r} now" for name, (old, new) in refused.items())
        raise UserError(
            f"{workdir} was trained with another config: {shown}. Use another --workdir, or the same values"
        )
    if not checkpoints.states() and (saved := checkpoints.once_saved(there.train.checkpoint_every)):
        raise UserError(
            f"{workdir}: {saved}, but no complete checkpoint is in {checkpoints.folder}; bring them back, or start "
            "anew with another --workdir"
        )
    if steps:
        for name, (old, new) in changed.items():
            log.info("resuming with %s changed from %r to %r", name, old, new)


def config_of(checkpoints: Checkpoints) -> Config | None:
    """The config of a workdir; where its own file is damaged or gone, that of a checkpoint. None if there is neither.

    Raises `UserError` if there is something else.
    """
    path = checkpoints.folder.parent / "config.json"
    if not path.exists():
        steps = checkpoints.steps()
        return checkpoints.at(steps[-1]).config if steps else None
    try:
        return from_json(path.read_bytes().decode(), str(path))
    except (UserError, OSError, UnicodeDecodeError) as error:
        whole = checkpoints.newest_whole()
        if whole is None:
            workdir = checkpoints.folder.parent
            raise UserError(f"{workdir} is not a workdir of train.py ({error}); use another --workdir") from None
        log.warning("%s; taking the one that checkpoint %s holds", error, whole.name)
        return whole.config


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[Lock]:
    """Make the workdir, and keep other training runs out of it. Who only reads there is not kept from it."""
    folder = path_of(workdir)
    if sealed(folder):
        raise UserError(f"--workdir {workdir}: a checkpoint, in which nothing else is written; use another folder")
    lock = Lock(folder / ".lock", "another run trains there; stop it first, or use another --workdir")
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_links(*(folder / name for name in (".lock", "config.json", "profile", *MADE)))
            stack.enter_context(lock.held())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--workdir {workdir}: {reason}; name a folder that can be written") from None
        yield lock


def restore(
    checkpoints: Checkpoints,
    abstract: TrainState,
    mesh: Mesh,
    unfit: Callable[[Checkpoint], str | None] = lambda there: None,
) -> tuple[TrainState | None, dict[str, Any]]:
    """The newest checkpoint that is whole and of this run, on this mesh, with its progress; None and {} if none was
    ever saved. `unfit` says of one that is whole why it is not of this run.

    Raises `UserError` if there are some and all are damaged: nobody wants to start afresh without being asked.
    Process 0 looks, and all take what it chose.
    """
    placed = with_sharding(abstract, shardings(abstract, mesh))
    items = {"params": placed.params, "optimizer": placed.optimizer}
    damaged: list[int | str] = []
    with all_or_none():
        newest = newest_whole(checkpoints, damaged, unfit) if first() else None
    name = json.loads(gather(json.dumps(newest))[0])
    if name is None:
        return None, {}
    opened = checkpoints.at(name)
    restored = opened.restore(items, verified=True)
    with all_or_none():
        for other in damaged:
            checkpoints.discard(other)
    progress = opened.progress
    log.info("resuming from step %d", progress["step"])
    return TrainState(_counter(progress["step"], mesh), restored["params"], restored["optimizer"]), progress


def compare(task: Task, config: Config) -> None:
    """Raise `UserError` in all processes if they do not see the same config, text and tokenizer."""
    if jax.process_count() == 1:
        return
    fields = {name: value for name, value in flatten(config).items() if name not in OWN}
    hashes = {f"sha256 of {name}": hashlib.sha256(content).hexdigest() for name, content in task.files.items()}
    texts = {**task.content_digests(), "sha256 of the development set": task.dev_digest()}
    batches = {"sha256 of the order of batches": task.batches().digest(), "version of JAX": jax.__version__}
    agree(json.loads(json.dumps({**fields, **hashes, **texts, **batches})))


def same_folder(folder: epath.Path) -> None:
    """Raise `UserError` in a process that sees another folder at the workdir's path than process 0."""
    if jax.process_count() == 1:
        return
    path, mark = folder / ".together", gather(secrets.token_hex(8))[0]
    with all_or_none():
        if first():
            replace(path, mark.encode())
    if not path.exists() or path.read_text() != mark:
        raise UserError(
            f"{folder} is not the folder that process 0 sees there; give all the same one, on storage they share"
        )


def newest_whole(
    checkpoints: Checkpoints, damaged: list[int | str], unfit: Callable[[Checkpoint], str | None]
) -> int | str | None:
    """The newest checkpoint that is as it was written, and not `unfit`; None if there is none. Adds those passed over
    to `damaged`."""
    for name in reversed(checkpoints.states()):
        there = checkpoints.at(name)
        wrong = there.damage() or unfit(there)
        if not wrong:
            return name
        log.warning("%s; going back to the checkpoint before", wrong)
        damaged.append(name)
    if damaged:
        raise UserError(
            f"all {len(damaged)} checkpoints in {checkpoints.folder} are damaged or of another run; nothing was "
            "changed there. Bring back a copy of one, or start anew with another --workdir"
        )
    return None


def initial(task: Task, config: Config, mesh: Mesh, abstract: TrainState) -> TrainState:
    """Fresh parameters, laid out on the mesh from the first byte, or those of `train.init_from`."""
    tx, layout = optimizer(config.train, config.model.d_model), shardings(abstract, mesh)
    source = config.train.init_from
    if source is None:
        return jax.jit(lambda: init_state(task.model.init, tx, config.train.seed), out_shardings=layout)()
    with all_or_none():
        name = starting_point(config, abstract.params).name
    # A run that still trains may have another one by now: all processes take that of process 0.
    other = Checkpoints(source).at(json.loads(gather(json.dumps(name))[0]))
    params = other.restore({"params": with_sharding(abstract.params, layout.params)})["params"]
    if not finite(params):
        raise UserError(f"train.init_from = {source!r}: {other.path} holds parameters that are no numbers")
    log.info("starting from the parameters of %s", other.path)
    return TrainState(_counter(0, mesh), params, jax.jit(tx.init, out_shardings=layout.optimizer)(params))


def starting_point(config: Config, abstract_params: Params) -> Checkpoint:
    """The checkpoint that `train.init_from` means. Raises `UserError` if there is none, or if it is of another model:
    then with the options in which the two differ."""
    source = config.train.init_from
    opened = Checkpoints(source).open()
    try:
        wrong = opened.misfit(abstract_params)
        there = opened.config if wrong else config
    except OSError as error:
        wrong, there = f"{opened.path} cannot be read ({error.strerror or error})", config
    if unlike := other_shapes(there.model, config.model):
        shown = "; ".join(f"--model.{field} is {old!r} there, {new!r} here" for field, (old, new) in unlike.items())
        wrong = f"{shown}. Give the values of there, or leave train.init_from out"
    if wrong:
        raise UserError(f"train.init_from = {source!r}: {wrong}")
    return opened


def other_shapes(there: ModelConfig, here: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The fields, as far as they give parameters their shapes, in which two models differ, with both values."""

    def filled_in(model: ModelConfig) -> dict[str, Any]:
        """What a field comes to that is left to its default."""
        own = {f"{kind}_attention": model.attention(kind) for kind in KINDS}
        kv_heads = model.kv_heads or model.heads
        return flatten(dataclasses.replace(model, kv_heads=kv_heads, d_k=model.key_size, d_v=model.value_size, **own))

    free = [*SHAPELESS, *(["max_positions"] if "learned" not in (there.positions, here.positions) else [])]
    meant, before, after = (filled_in(there), filled_in(here)), flatten(there), flatten(here)
    return {
        field: (before[field], after[field])
        for field in before
        if before[field] != after[field] and meant[0][field] != meant[1][field] and field.split(".")[-1] not in free
    }


def check_start(config: Config, workdir: str, vocab_size: int) -> None:
    """Raise `UserError` if the mesh does not fit the devices or divide the model, or a new run can't start from
    `train.init_from`: all of it before any text is read."""
    check_mesh(config, vocab_size)
    if config.train.init_from and not Checkpoints(workdir).states():
        starting_point(config, encoder_decoder(config.model, vocab_size).abstract_params)


def _counter(step: int, mesh: Mesh) -> Array:
    return jax.device_put(jnp.int32(step), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def banner(task: Task, config: Config, batches: Batches, mesh: Mesh, abstract: TrainState) -> None:
    """What is about to run."""
    kind = mesh.devices.flat[0].device_kind
    count = sum(x.size for x in jax.tree.leaves(abstract.params))
    log.info(
        "devices     %d x %s (data %d, fsdp %d, tensor %d)",
        *(mesh.size, kind, mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]),
    )
    log.info("model       %s parameters, %s, vocabulary %d", f"{count:,}", config.model.dtype, task.vocab_size)
    log.info(
        "batch       %s source and target positions an update, in %d micro-batches",
        *(f"{config.train.batch_tokens:,}", config.train.accumulate),
    )
    for line in task.describe():
        log.info("%s", line)
    shapes = ", ".join(f"{rows}x{source}+{target}" for rows, source, target in batches.shapes)
    log.info("shapes      %d to compile: %s", len(batches.shapes), shapes)


def extremes(batches: Batches) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes with the most positions and with the longest sentences: one of them needs the most memory."""
    largest = max(batches.shapes, key=lambda shape: (shape[0] * (shape[1] + shape[2]), shape[1]))
    return largest, max(batches.shapes, key=lambda shape: shape[1] + shape[2])


def accumulation(task_of: Callable[[int], Task], config: Config, limit: int | None = None) -> int:
    """The fewest micro-batches with which an update fits the memory of a device, found by compiling.

    `task_of(n)` is the task with n micro-batches. The limit, in bytes, is by default nine tenths of what the device
    has. Raises `UserError` if not even the smallest micro-batches fit.
    """
    mesh = make_mesh(config.mesh)
    limit = min(map(int, gather(str(limit or memory_of_a_device() * 9 // 10))))
    never = UserError(
        f"--batch auto: an update does not fit {limit / 2**30:.1f} GiB a device, however it is cut up; share the "
        "parameters over more devices (mesh.fsdp, mesh.tensor), or set --train.remat True"
    )
    whole, updates_an_epoch, at_least = 0, 0, 1
    for count in MICRO_BATCHES:
        if count < at_least:
            continue
        try:
            task = task_of(count)
            batches = task.batches()
        except UserError:
            if count == 1:
                raise
            raise never from None
        shapes = extremes(batches)
        positions = shapes[0][0] * sum(shapes[0][1:])
        whole, updates_an_epoch = whole or positions, updates_an_epoch or batches.batches_per_epoch
        if positions < 0.97 * whole or batches.batches_per_epoch > 1.03 * updates_an_epoch + 1:
            continue  # its micro-batches, of whole rows, make up too little of the batch
        tx = optimizer(config.train, config.model.d_model)
        abstract = jax.eval_shape(lambda task=task, tx=tx: init_state(task.model.init, tx, config.train.seed))
        update = compiled(task.loss, tx, config.train.seed, mesh, abstract, skip=config.train.non_finite == "skip")
        try:
            need = max(bytes_needed(ahead_of_time(update, abstract, shape, mesh, count)) for shape in set(shapes))
        except jax.errors.JaxRuntimeError as error:  # the compiler itself finds out on some devices
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            need = TOO_MUCH
        need = max(map(int, gather(str(need))))
        if not need:
            raise UserError(
                "--batch auto: JAX can't tell what memory a program takes on these devices; set train.accumulate"
            )
        fits = need <= limit
        memory = f"{need / 2**30:.2f} of" if need < TOO_MUCH else "more than"
        log.info(
            "batch auto  %d micro-batches %s: %s %.2f GiB a device",
            *(count, "fit" if fits else "do not fit", memory, limit / 2**30),
        )
        if fits:
            return count
        # All but the state shrinks with the micro-batches at most: fewer of them than this need not be tried.
        state = bytes_of(abstract, mesh)
        if state >= limit:
            raise never
        if need < TOO_MUCH:
            at_least = math.ceil(count * (need - state) / (limit - state))
    raise AssertionError("no batch can be cut into so many")


def bytes_of(abstract: Any, mesh: Mesh) -> int:
    """What a state takes on each device."""
    laid = zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings(abstract, mesh)), strict=True)
    return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, sharding in laid)


def memory_of_a_device() -> int:
    """Bytes that one device has for us."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits) // jax.local_device_count()


def dry_run(task: Task, config: Config, workdir: str) -> None:
    """Everything once: the largest shapes, one update, save, restore, decode; then say what a run would take."""
    import tempfile

    mesh = make_mesh(config.mesh)
    batches = task.batches()
    tx = optimizer(config.train, config.model.d_model)
    abstract = jax.eval_shape(lambda: init_state(task.model.init, tx, config.train.seed))
    banner(task, config, batches, mesh, abstract)
    update = compiled(task.loss, tx, config.train.seed, mesh, abstract, skip=config.train.non_finite == "skip")
    largest, longest = extremes(batches)
    for shape in dict.fromkeys((longest, largest)):
        began = time.monotonic()
        step = ahead_of_time(update, abstract, shape, mesh, config.train.accumulate)
        log.info("compiled    %dx%d+%d in %s", *shape, clock(time.monotonic() - began))
        log.info("memory      %.2f GiB a device for this update", bytes_needed(step) / 2**30)
    rows, source, target = largest
    host_batch = {"source": np.full((rows, source), 3, np.int32), "target": np.full((rows, target), 3, np.int32)}
    batch = place(cut(host_batch, mesh, config.train.accumulate), batch_sharding(mesh, micro_batches=True))
    state = initial(task, config, mesh, abstract)
    began = time.monotonic()
    state, metrics = step(state, batch)
    loss = float(metrics["loss"])
    seconds = time.monotonic() - began
    log.info("update 1    loss %.3f in %.2f s", loss, seconds)
    with tempfile.TemporaryDirectory(prefix="transformer-dry-run-") as folder:
        checkpoints = Checkpoints(folder)
        items = {"params": state.params, "optimizer": state.optimizer}
        files = {**task.files, "config.json": to_json(config).encode()}
        checkpoints.save(1, items, progress={"step": 1, "vocab_size": task.vocab_size}, files=files)
        checkpoints.wait()
        placed = with_sharding(abstract, shardings(abstract, mesh))
        restored = checkpoints.at(1).restore({"params": placed.params, "optimizer": placed.optimizer})
        log.info("checkpoint  saved and restored")
    task.try_decoding(restored["params"])
    log.info(
        "estimate    %s for %s updates, evaluation not counted",
        clock(seconds * config.train.steps),
        f"{config.train.steps:,}",
    )
    log.info("dry run done; %s was not touched", workdir)
