"""The start of a run: check that all processes agree, and get the state to continue from.

The state comes from the newest checkpoint of the run, else from `train.init_from`, else from `train.seed`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import UserError, flatten, to_json
from transformer.files import Lock, local, replace, sweep
from transformer.judging import Judge, upgraded
from transformer.machine import cores
from transformer.training.processes import agree, all_or_none, first, gather
from transformer.training.progress import Interval, Progress
from transformer.training.step import Program, TrainState, counter
from transformer.training.stopping import StopSignals
from transformer.training.task import Batches, Shape, Task
from transformer.training.warm_start import initial

log = logging.getLogger("transformer")

# Options that may differ between hosts: each may have its own cache and its own copy of the text. The contents of the
# text are compared instead.
OF_MACHINE = ("data.cache_dir", "data.workers", "data.tfds_dir")


# ---- The state -------------------------------------------------------------------------------------------------------
class Setup(NamedTuple):
    """The parts of a run that no update changes."""

    task: Task
    folder: epath.Path
    checkpoints: Checkpoints
    lock: Lock | None
    batches: Batches
    program: Program
    signals: StopSignals


def begin(setup: Setup) -> tuple[TrainState, Progress]:
    """The state and the progress to continue from. Checks them first, then writes the files of the workdir.

    Raises `UserError` if the training text has changed, or if there is no intact checkpoint (see `restore`).
    """
    task, folder, checkpoints, _, _, program, _ = setup
    config, digest = task.config, task.data_digest()
    state, saved = restore(
        *(checkpoints, program.abstract),
        lambda checkpoint: checkpoint.unfit(config, program.abstract.params, task.files),
    )
    refuse_other_text(saved, digest, folder)
    if state is None:
        state = initial(task.objective, config, program)
    run = saved.get("run") or gather(secrets.token_hex(8))[0]
    machine = machine_of(program.mesh)
    if changed := machine_changes(saved.get("machine"), machine):
        log.info("resuming on another machine (%s): sums may be rounded differently from here on", changed)
    write_workdir(setup)
    judge = Judge(task.judged, task.judged_on(), upgraded(saved, lambda: checkpoints.open("last").config))
    if judge.reset_reasons:
        log.warning(
            "scores cannot be compared with those before step %d, because %s; the best checkpoint and train.patience "
            "start again",
            *(int(state.step), ", ".join(judge.reset_reasons)),
        )
    if first():  # a killed run may have left files behind; older checkpoints are removed after a finite update
        checkpoints.prune(None, None, run)
    return state, Progress(
        run=run,
        machine=machine,
        data_digest=digest,
        vocab_size=task.objective.model.config.vocab_size,
        judge=judge,
        interval=Interval(saved.get("interval", {})),
        skipped=saved.get("skipped", 0),
        left_out=set(saved.get("left_out", [])),
        owed=saved.get("owed"),
    )


def without_effect(task: Task) -> Iterator[str]:
    """A warning for each field that stops a run by its scores, if there is no development set."""
    if task.judged_on().get("dev_digest") == "":
        for name in ("patience", "stop_at"):
            if (value := getattr(task.config.train, name)) is not None:
                yield (
                    f"train.{name} = {value} has no effect, as there is no development set to evaluate on; give one, "
                    "or leave it out"
                )


def refuse_other_text(saved: Mapping[str, Any], digest: str, folder: epath.Path) -> None:
    """Raise `UserError` unless the training text with this digest is that of a checkpoint with the progress `saved`."""
    if saved.get("data_digest", digest) != digest:
        raise UserError(f"the training text is not what {folder} was trained on; restore it, or use another --workdir")


def refuse_to_resume(task: Task, program: Program, folder: epath.Path) -> None:
    """Raise `UserError` if there are checkpoints and a run of this task can't resume from them. Changes nothing."""
    checkpoints, digest = Checkpoints(folder), task.data_digest()
    name = newest_whole(checkpoints, [], lambda one: one.unfit(task.config, program.abstract.params, task.files))
    if name is not None:
        refuse_other_text(checkpoints.at(name).progress, digest, folder)


def write_workdir(setup: Setup) -> None:
    """Write config.json first (see `workdir.MADE`), then the task's files and sets."""
    task, folder, _, lock, *_ = setup
    with all_or_none():
        if first():
            if lock is not None:
                lock.check()
            if local(folder):
                sweep(Path(folder))
            for name, content in {"config.json": to_json(task.config).encode(), **task.files}.items():
                replace(folder / name, content)
            task.write_sets(folder)
    with all_or_none():
        require_same_folder(folder)


def restore(
    checkpoints: Checkpoints,
    abstract: TrainState,
    unfit: Callable[[Checkpoint], str | None] = lambda checkpoint: None,
) -> tuple[TrainState | None, dict[str, Any]]:
    """The state and the progress of the newest checkpoint that is intact and belongs to this run; None and {} if there
    is no checkpoint. The state has the shapes and shardings of `abstract`.

    `unfit` returns why an intact checkpoint does not belong to this run, or None. Process 0 chooses the checkpoint for
    all processes. Newer ones, which it passed over, are discarded. Raises `UserError` if there are checkpoints but none
    can be used: training must not start from scratch without being asked.
    """
    items = {"params": abstract.params, "optimizer": abstract.optimizer}
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
    step = counter(progress["step"], abstract.step.sharding.mesh)
    return TrainState(step, restored["params"], restored["optimizer"]), progress


def newest_whole(
    checkpoints: Checkpoints, damaged: list[int | str], unfit: Callable[[Checkpoint], str | None]
) -> int | str | None:
    """The name of the newest checkpoint that is undamaged and not `unfit`; None if there are no checkpoints.

    Adds the names of newer checkpoints to `damaged`. Raises `UserError` if none can be used.
    """
    for name in reversed(checkpoints.states()):
        checkpoint = checkpoints.at(name)
        reason = checkpoint.damage() or unfit(checkpoint)
        if not reason:
            return name
        log.warning("%s; going back to the previous checkpoint", reason)
        damaged.append(name)
    if damaged:
        raise UserError(
            f"all {len(damaged)} checkpoints in {checkpoints.folder} are damaged or of another run; nothing was "
            "changed there. Bring back a copy of one, or start anew with another --workdir"
        )
    return None


# ---- All processes, and the machine ----------------------------------------------------------------------------------
def require_same_inputs(task: Task) -> None:
    """Raise `UserError` in all processes if they do not see the same config, text and tokenizer."""
    if jax.process_count() == 1:
        return
    fields = {
        name: value for name, value in flatten(task.config).items() if name not in (*OF_MACHINE, *task.config.movable)
    }
    hashes = {f"sha256 of {name}": hashlib.sha256(content).hexdigest() for name, content in task.files.items()}
    batches = {"sha256 of the order of batches": task.batches().digest(), "version of JAX": jax.__version__}
    agree(json.loads(json.dumps({**fields, **hashes, **task.content_digests(), **batches})))


def require_same_folder(folder: epath.Path) -> None:
    """Raise `UserError` if this process sees another folder at the workdir's path than process 0."""
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


def machine_of(mesh: Mesh) -> dict[str, int | str]:
    """The properties of the machine on which the rounding of sums depends: an update gives the same bits only if all of
    them are the same."""
    return {"cores": cores(), "device": mesh.devices.flat[0].device_kind}


def machine_changes(before: Any, now: Mapping[str, int | str]) -> str:
    """A text that lists the changed properties of the machine (see `machine_of`); "" if there are none.

    `before` comes from a checkpoint. Properties that an older version did not save count as unchanged.
    """
    before = before if isinstance(before, dict) else {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name}: {before[name]!r} before, {now[name]!r} now" for name in changed)


def banner(task: Task, batches: Batches, program: Program) -> None:
    """Log devices, model, batches and data of the run."""
    mesh, model, train = program.mesh, task.objective.model, task.config.train
    parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
    log.info(
        "devices     %d x %s (data %d, fsdp %d, tensor %d)",
        *(mesh.size, mesh.devices.flat[0].device_kind, mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]),
    )
    log.info(
        "model       %s parameters, %s, vocabulary %d", f"{parameters:,}", model.config.dtype, model.config.vocab_size
    )
    log.info(
        "batch       %s positions per side and update, in %d micro-batches",
        *(f"{train.batch_tokens:,}", train.accumulate),
    )
    for line in task.describe():
        log.info("%s", line)
    for warning in without_effect(task):
        log.warning("%s", warning)
    log.info("shapes      %d to compile: %s", len(batches.shapes), ", ".join(map(shown, batches.shapes)))


def shown(shape: Shape) -> str:
    """A batch shape as text, rows x lengths: 96x32+40."""
    rows = next(iter(shape.values()))[0]
    return f"{rows}x" + "+".join(str(length) for _, length in shape.values())
