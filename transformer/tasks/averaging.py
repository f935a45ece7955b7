"""Average the last checkpoints of a run, and score the result beside the last one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from transformer.checkpoint import AVERAGE, Checkpoints
from transformer.streams import plain
from transformer.tasks.sets import NoSet
from transformer.training.task import RunnableTask

log = logging.getLogger("transformer")


def average(task: type[RunnableTask], workdir: str, last: int) -> Iterator[str]:
    """Average the parameters of the last checkpoints of a run of a task, and yield lines with each score on the
    development set, before and after.

    From then on, evaluation uses the average by default. Raises `UserError` if there is nothing to average, and at the
    end if a score is not finite.
    """
    yield from averaged(Checkpoints(workdir), last)
    dev = {"kind": "dev"} if "kind" in inspect.signature(task.score).parameters else {}
    try:
        before, after = (task.score(workdir, checkpoint=name, **dev) for name in ("last", AVERAGE))
    except NoSet:
        yield NOT_SCORED
        return
    where, numbers = f" on {plain(after['test_set'])}" if "test_set" in after else "", _numbers(after)
    for name, value in _numbers(before).items():
        if name in numbers:
            yield f"{name}{where}: {value:.4f} before (step {before['checkpoint']}), {numbers[name]:.4f} after"


NOT_SCORED = "no development set to score it on"


def averaged(checkpoints: Checkpoints, last: int) -> Iterator[str]:
    """Save the average of the last checkpoints, and yield a line with their steps. Warns if there are fewer."""
    steps = checkpoints.average(last)
    log.info("the average is saved in %s", checkpoints.path(AVERAGE))  # logged now, in case scoring fails
    yield f"averaged {len(steps)} checkpoints: {', '.join(map(str, steps))}"
    if len(steps) < last:
        log.warning("there are only %d checkpoints; train.keep_last sets how many are kept", len(steps))


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores in a result of `RunnableTask.score`, by name. Counts are left out."""
    of_ranges = {f"exact_match {lengths}": share for lengths, share in result.get("exact_match", {}).items()}
    found = {**result, **result.get("scores", {}), **of_ranges}
    return {name: value for name, value in found.items() if type(value) is float}
