"""`--batch auto`: choose micro-batches that fit the memory of a device. `--dry-run`: try every part of a run once."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from transformer.checkpoint import Checkpoints
from transformer.config import UserError, to_json
from transformer.files import path_of
from transformer.memory import memory_of_a_device
from transformer.training.processes import gather
from transformer.training.progress import clock
from transformer.training.sharding import batch_sharding, bytes_on_a_device, make_mesh, put
from transformer.training.start import banner, refuse_to_resume, shown
from transformer.training.step import Program, TrainState, bytes_needed, cut, program
from transformer.training.task import Batches, Shape, Task
from transformer.training.warm_start import initial

log = logging.getLogger("transformer")

# Micro-batch counts that `--batch auto` tries. The last is a sentinel: no batch has so many rows.
MICRO_BATCHES = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 2**30)
TOO_MUCH = 2**62  # bytes; the compiler itself ran out of memory


def positions(shape: Shape) -> int:
    """The number of positions in all arrays of a batch."""
    return sum(rows * length for rows, length in shape.values())


def extremes(batches: Batches) -> tuple[Shape, Shape]:
    """The shape with the most positions and the shape with the longest rows: one of them needs the most memory."""
    longest = max(batches.shapes, key=lambda shape: sum(length for _, length in shape.values()))
    return max(batches.shapes, key=lambda shape: (positions(shape), *(length for _, length in shape.values()))), longest


def accumulation(task_of: Callable[[int], Task], limit: int | None = None) -> int:
    """The smallest number of micro-batches with which an update fits the memory of a device. It compiles each try.

    `task_of(n)`: the task with n micro-batches. `limit`: bytes per device, by default nine tenths of its memory. Raises
    `UserError` if not even the smallest micro-batches fit.
    """
    limit = min(map(int, gather(str(limit or memory_of_a_device() * 9 // 10))))
    too_large = UserError(
        f"--batch auto: an update does not fit {limit / 2**30:.1f} GiB a device, however it is cut up; share the "
        "parameters over more devices (mesh.fsdp, mesh.tensor), or set --train.remat True"
    )
    whole_batch, updates_an_epoch, at_least = 0, 0, 1
    for count in MICRO_BATCHES:
        if count < at_least:
            continue
        try:
            task = task_of(count)
            batches = task.batches()
        except UserError:
            if count == 1:
                raise
            if count == MICRO_BATCHES[-1]:
                raise too_large from None
            continue
        most = positions(extremes(batches)[0])
        whole_batch, updates_an_epoch = whole_batch or most, updates_an_epoch or batches.batches_per_epoch
        if most < 0.97 * whole_batch or batches.batches_per_epoch > 1.03 * updates_an_epoch + 1:
            continue  # micro-batches of whole rows would make the batch too small
        update_program = program(task.objective, task.config.train, make_mesh(task.config.mesh))
        need = memory_of_an_update(update_program, batches, count)
        fits = need <= limit
        memory = f"{need / 2**30:.2f} of" if need < TOO_MUCH else "more than"
        log.info(
            "batch auto  %d micro-batches %s: %s %.2f GiB a device",
            *(count, "fit" if fits else "do not fit", memory, limit / 2**30),
        )
        if fits:
            return count
        # The state stays the same, and the rest shrinks at most in proportion: smaller counts cannot fit.
        state = bytes_on_a_device(update_program.abstract)
        if state >= limit:
            raise too_large
        if need < TOO_MUCH:
            at_least = math.ceil(count * (need - state) / (limit - state))
    raise AssertionError("no batch can be cut into so many")


def memory_of_an_update(update_program: Program, batches: Batches, micro_batches: int) -> int:
    """Bytes that the largest update needs on a device; `TOO_MUCH` if the compiler runs out of memory."""
    largest, longest = extremes(batches)
    shapes = [largest] if largest == longest else [largest, longest]
    try:
        need = max(bytes_needed(update_program.compile(shape, micro_batches)) for shape in shapes)
    except jax.errors.JaxRuntimeError as error:  # on some devices, compiling already fails
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need = TOO_MUCH
    need = max(map(int, gather(str(need))))
    if not need:
        raise UserError(
            "--batch auto: JAX can't tell what memory a program takes on these devices; set train.accumulate"
        )
    return need


def dry_run(task: Task, workdir: str) -> None:
    """Try every part of a run once: compile the largest shapes, update, save, restore, decode. Log time and memory."""
    batches, train = task.batches(), task.config.train
    update_program = program(task.objective, train, make_mesh(task.config.mesh))
    banner(task, batches, update_program)
    refuse_to_resume(task, update_program, path_of(workdir))
    largest, longest = extremes(batches)
    for shape in [largest] if largest == longest else [longest, largest]:
        began = time.monotonic()
        update = update_program.compile(shape, train.accumulate)
        log.info("compiled    %s in %s", shown(shape), clock(time.monotonic() - began))
        log.info("memory      %.2f GiB a device for this update", bytes_needed(update) / 2**30)
    filled = {name: np.full(size, 3, np.int32) for name, size in largest.items()}
    batch = put(
        cut(filled, update_program.mesh, train.accumulate), batch_sharding(update_program.mesh, micro_batches=True)
    )
    state = initial(task.objective, task.config, update_program)
    began = time.monotonic()
    state, metrics = update(state, batch)
    loss = float(metrics["loss"])
    seconds = time.monotonic() - began
    log.info("update 1    loss %.3f in %.2f s", loss, seconds)
    task.sample(saved_and_restored(task, update_program, state).params)
    log.info("estimate    %s for %s updates, evaluation not counted", clock(seconds * train.steps), f"{train.steps:,}")
    log.info("dry run done; %s was not touched", workdir)


def saved_and_restored(task: Task, update_program: Program, state: TrainState) -> TrainState:
    """Save the state as a checkpoint in a temporary folder, and return the restored state."""
    with tempfile.TemporaryDirectory(prefix="transformer-dry-run-") as folder:
        checkpoints = Checkpoints(folder)
        items = {"params": state.params, "optimizer": state.optimizer}
        files = {**task.files, "config.json": to_json(task.config).encode()}
        progress = {"step": 1, "vocab_size": task.objective.model.config.vocab_size}
        checkpoints.save(1, items, progress=progress, files=files)
        checkpoints.wait()
        abstract = {"params": update_program.abstract.params, "optimizer": update_program.abstract.optimizer}
        restored = checkpoints.at(1).restore(abstract)
        log.info("checkpoint  saved and restored")
    return TrainState(state.step, **restored)
