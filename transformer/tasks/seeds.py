"""A summary of runs that differ in their seed, and the scores of each."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformer.checkpoint import Checkpoints, differences_of, seed_folder, seeds_in
from transformer.config import UserError

log = logging.getLogger("transformer")


def summary(workdir: Any, seeds: Sequence[int]) -> Iterator[str]:
    """Lines with the best and the last score of each seed, by the first score that judges checkpoints; then the mean
    and the standard deviation of the best ones, over all seeds that have one, or why they can't be compared."""
    best: list[float] = []
    scored: dict[int, Mapping[str, Any]] = {}
    for seed in seeds:
        checkpoints = Checkpoints(seed_folder(workdir, seed))
        progress = checkpoints.read("last", lambda opened: opened.progress) if checkpoints.states() else {}
        name = next((first for first, _ in progress.get("judged", ())), "")
        score, last = (progress.get("best") or {}).get(name), progress.get(name)
        if score is None:
            yield f"seed {seed}: no score"
            continue
        best.append(score)
        scored[seed] = progress
        note = f"   COLLAPSED: {progress['dev_collapse']}" if progress.get("dev_collapse") else ""
        yield f"seed {seed}: best {name} {score:.4g}, last {'none' if last is None else format(last, '.4g')}{note}"
    if different := differences_of(scored):
        yield f"no mean: {different}"
    elif best:
        spread = f", standard deviation {statistics.stdev(best):.4g}" if len(best) > 1 else ""
        yield f"{len(best)} seeds: mean of the best {name} {statistics.fmean(best):.4g}{spread}"


def of_each_seed(workdir: Any, evaluated: Callable[[Any], dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """For each seed of a workdir with several, what `evaluated` returns for its folder; {} for a single run's workdir.

    Seeds without a checkpoint are left out with a warning. Raises `UserError` if none has one.
    """
    seeds = seeds_in(workdir)
    if not seeds or Checkpoints(workdir).states():
        return {}
    each = {}
    for seed in seeds:
        folder = seed_folder(workdir, seed)
        if Checkpoints(folder).states():
            each[seed] = evaluated(folder)
        else:
            log.warning("%s has no checkpoint: left out", folder)
    if not each:
        raise UserError(f"{workdir}: no run in its folders seed-N has a checkpoint yet")
    return each


def require_alike(workdir: Any, what: str, each: Mapping[int, Any]) -> None:
    """Raise `UserError` unless this is the same for each seed, so that their scores may be put together."""
    if len(set(each.values())) > 1:
        listed = ", ".join(f"{value} for seed {seed}" for seed, value in each.items())
        raise UserError(f"{workdir}: its seeds have different {what}: {listed}. Score each of its folders seed-N alone")


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and the standard deviation of some scores; the deviation of a single one is None."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_deviation": deviation}
