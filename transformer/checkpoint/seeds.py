"""Runs that differ in their seed: each is a workdir in a folder seed-N of a common one."""

from __future__ import annotations

import re
from typing import Any

from etils import epath

from transformer.checkpoint.layout import folder_of
from transformer.checkpoint.store import Checkpoints
from transformer.config import UserError
from transformer.judging import rank

_NAME = re.compile(r"seed-(0|[1-9][0-9]{0,9})")


def seed_folder(workdir: Any, seed: int) -> epath.Path:
    """The workdir of the run with this seed."""
    return folder_of(workdir).parent / f"seed-{seed}"


def seeds_in(workdir: Any) -> list[int]:
    """The seeds of the runs in a common workdir, ascending; none if it has no such folders."""
    folder = folder_of(workdir).parent
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match and (folder / match[0] / "config.json").exists())


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
            progress = checkpoints.read(None, lambda opened: opened.evaluation)
            score = (progress and rank(progress, progress["judged"])) or ()
            ranked.append((score, -seed))
    if not ranked:
        raise UserError(f"{folder_of(workdir).parent}: no run in its folders seed-N has a checkpoint yet")
    return seed_folder(workdir, -max(ranked)[1])
