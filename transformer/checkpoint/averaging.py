"""The mean of the parameters of several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from transformer.checkpoint.opened import Checkpoint
from transformer.config import UserError
from transformer.model import Params


def mean(checkpoints: Sequence[Checkpoint]) -> Params:
    """The mean of the parameters of checkpoints: computed in float64 on the host, returned as float32.

    Raises `UserError` if their shapes differ or the mean is not finite.
    """
    workdir = checkpoints[0].path.parent.parent
    total: Any = None
    for opened in checkpoints:
        params = opened.params()
        shapes = jax.tree.map(np.shape, params)
        if total is None:
            first, total = shapes, jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        elif shapes != first:
            raise UserError(
                f"checkpoints {checkpoints[0].name} and {opened.name} of {workdir} hold models of different shapes"
            )
        else:
            total = jax.tree.map(np.add, total, params)
    averaged = jax.tree.map(lambda x: np.asarray(x / len(checkpoints), np.float32), total)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(averaged)):
        raise UserError(f"{workdir}: the mean of its last {len(checkpoints)} checkpoints is not finite")
    return averaged
