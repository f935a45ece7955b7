"""Changes the checkpoints of gs://bucket/run for `test_bucket`, in a process that may be killed: `… killed|mended`."""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints, folders, interrupted, saving
from transformer.config import Config, to_json

FILES = {"config.json": to_json(Config()).encode(), "tokenizer.model": b"pieces"}


def save(checkpoints: Checkpoints, step: int, name: str = "") -> None:
    items = {"params": {"x": np.full(3, float(step))}}
    progress = {"step": step, "vocab_size": 20, "dev_bleu": None}
    checkpoints.save(name or step, items, progress=progress, files=FILES, keep_last=1)
    checkpoints.wait()


def params(self: Checkpoint) -> Any:
    return self.restore({"params": {"x": jax.ShapeDtypeStruct((3,), np.float64)}})["params"]


def killed(*_: object) -> None:
    os._exit(9)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    Checkpoint.params = params
    checkpoints = Checkpoints("gs://bucket/run")
    if sys.argv[1] == "killed":
        for step in (5, 10, 15):
            save(checkpoints, step)
        checkpoints.average(1)
        assert checkpoints.steps() == [15]
        saving.seal = killed
        save(checkpoints, 17, interrupted(17))
    if sys.argv[1] == "killed in an average":
        save(checkpoints, 20)
        assert checkpoints.choose() == "average"
        remove = folders.remove
        folders.remove = lambda path: (remove(path), killed())
        checkpoints.average(1)
    if sys.argv[1] == "mended":
        assert checkpoints.at("average").progress["averaged_steps"] == [20]  # of the checkpoint that was complete
        assert checkpoints.at("average").params()["x"].tolist() == [20.0] * 3
        save(checkpoints, 25)
        assert checkpoints.average(1) == [25]
        assert checkpoints.steps() == [25]
        assert [checkpoints.at(name).damage() for name in (25, "average")] == [None, None]
        assert checkpoints.at("average").params()["x"].tolist() == [25.0] * 3
        checkpoints.discard(25)
        assert checkpoints.steps() == []
