"""Choose among runs that differ in their seed."""

from __future__ import annotations

from functools import partial
from typing import Any

from etils import epath

from transformer.checkpoint.layout import folder_of, seed_folder, seeds_in
from transformer.checkpoint.opened import again
from transformer.checkpoint.store import Checkpoints
from transformer.config import UserError
from transformer.judging import rank


def best_seed(workdir: Any) -> epath.Path:
    """The workdir itself; if it holds the runs of several seeds, the workdir of that with the best score.

    A run without a score ranks below all others; of equals, the lowest seed is the best. Raises `UserError` if no run
    has a checkpoint.
    """
    if not (seeds := seeds_in(workdir)) or Checkpoints(workdir).states():
        return folder_of(workdir).parent
    ranked = []
    for seed in seeds:
        checkpoints = Checkpoints(seed_folder(workdir, seed))
        if checkpoints.states():
            progress = again(partial(_of_best, checkpoints))
            score = (progress and rank(progress, progress["judged"])) or ()
            ranked.append((score, -seed))
    if not ranked:
        raise UserError(f"{folder_of(workdir).parent}: no run in its folders seed-N has a checkpoint yet")
    return seed_folder(workdir, -max(ranked)[1])


def _of_best(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The progress of the best checkpoint, which has scores (an average has none); None if none has a score."""
    best = checkpoints.best()
    return None if best is None else checkpoints.at(best).evaluation
