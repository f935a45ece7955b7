"""Choose among runs that differ in their seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from etils import epath

from transformer.checkpoint.layout import folder_of, seed_folder, seeds_in
from transformer.checkpoint.opened import again
from transformer.checkpoint.store import Checkpoints
from transformer.config import UserError
from transformer.judging import changes, rank


def best_seed(workdir: Any) -> epath.Path:
    """The workdir itself; if it holds the runs of several seeds, the workdir of that with the best score.

    A run without a score ranks below all others; of equals, the lowest seed is the best. Raises `UserError` if no run
    has a checkpoint, or if their scores can't be compared.
    """
    if not (seeds := seeds_in(workdir)) or Checkpoints(workdir).states():
        return folder_of(workdir).parent
    found = {}
    for seed in seeds:
        checkpoints = Checkpoints(seed_folder(workdir, seed))
        if checkpoints.states():
            found[seed] = again(partial(_of_best, checkpoints))
    if not found:
        raise UserError(f"{folder_of(workdir).parent}: no run in its folders seed-N has a checkpoint yet")
    scored = {seed: progress for seed, progress in found.items() if progress is not None}
    if different := differences_of(scored):
        raise UserError(f"{folder_of(workdir).parent}: {different}; name one of its folders seed-N")
    ranks = {seed: rank(progress, progress["judged"]) for seed, progress in scored.items()}
    return seed_folder(workdir, max(found, key=lambda seed: (ranks.get(seed) or (), -seed)))


def differences_of(scored: Mapping[int, Mapping[str, Any]]) -> str:
    """Why the scores of some seeds can't be compared, in words; "" if they can. `scored`: the progress of each seed."""
    for seed, now in scored.items():
        first, before = next(iter(scored.items()))
        reasons = changes(before, now)
        if "dev_digest" in now and before.get("data_digest") != now.get("data_digest"):  # else drawn from the seed
            reasons.append("the training text has changed")
        if reasons:
            return f"seed {seed} can't be compared with seed {first}, because {', '.join(reasons)}"
    return ""


def _of_best(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The progress of the best checkpoint, which has scores (an average has none); None if none has a score."""
    best = checkpoints.best()
    return None if best is None else checkpoints.at(best).evaluation
