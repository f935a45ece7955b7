"""A summary of runs that differ in their seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from transformer.checkpoint import Checkpoints, seed_folder


def summary(workdir: Any, seeds: Sequence[int]) -> Iterator[str]:
    """Lines with the best and the last score of each seed, by the first score that judges checkpoints; then the mean
    and the standard deviation of the best ones, over all seeds that have one."""
    best, name = [], ""
    for seed in seeds:
        checkpoints = Checkpoints(seed_folder(workdir, seed))
        progress = checkpoints.read("last", lambda opened: opened.progress) if checkpoints.states() else {}
        name = next((first for first, _ in progress.get("judged", ())), name)
        score, last = (progress.get("best") or {}).get(name), progress.get(name)
        if score is None:
            yield f"seed {seed}: no score"
            continue
        best.append(score)
        note = f"   COLLAPSED: {progress['dev_collapse']}" if progress.get("dev_collapse") else ""
        yield f"seed {seed}: best {name} {score:.4g}, last {'none' if last is None else format(last, '.4g')}{note}"
    if best:
        spread = f", standard deviation {statistics.stdev(best):.4g}" if len(best) > 1 else ""
        yield f"{len(best)} seeds: mean of the best {name} {statistics.fmean(best):.4g}{spread}"
