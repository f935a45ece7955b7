"""Whole updates on the same batches: ours as train.py does them, and those of a loop in PyTorch.

Both functions return what does the work: it goes through all batches as often as it is asked to, and returns the
seconds and the last loss. It has done so once before, so that all is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Work = Callable[[int], dict[str, Any]]


def ours(objective: Any, train: Any, batches: Sequence[Mapping[str, np.ndarray]], params: Any = None) -> Work:
    """Updates of an objective. Parameters: `params`, or initial ones."""
    import jax

    from transformer.config import MeshConfig
    from transformer.training.sharding import batch_sharding, make_mesh, put
    from transformer.training.step import cut, program

    mesh = make_mesh(MeshConfig())
    made = program(objective, train, mesh)
    if params is None:
        state = made.init()
    else:
        sharded = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, made.abstract.params)
        state = made.start_from(sharded)
    placed = [put(cut(dict(batch), mesh, 1), batch_sharding(mesh, micro_batches=True)) for batch in batches]

    def work(rounds: int) -> dict[str, Any]:
        nonlocal state
        began = time.perf_counter()
        for _ in range(rounds):
            for batch in placed:
                state, metrics = made.update(state, batch)
        loss = float(metrics["loss"])
        return {"seconds": time.perf_counter() - began, "loss": loss}

    work(1)
    return work


def pytorch(model: Any, adam: Any, loss: Callable[[Any], Any], batches: Sequence[Any], device: str, dtype: str) -> Work:
    """Updates of a model with float32 parameters, in bfloat16 under autocast. `loss`: that of one of the batches."""
    import torch

    def update(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            found = loss(batch)
        adam.zero_grad(set_to_none=True)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return found.detach()

    def work(rounds: int) -> dict[str, Any]:
        began = time.perf_counter()
        losses = [update(batch) for _ in range(rounds) for batch in batches]
        last = float(losses[-1])
        return {"seconds": time.perf_counter() - began, "loss": last}

    work(1)
    return work


def keep_memory() -> None:
    """What `set_up_jax` does for us: freed memory stays in the process."""
    import ctypes

    for option, value in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(option, value)
