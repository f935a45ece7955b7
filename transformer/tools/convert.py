"""Convert a trained model to fewer key/value heads, as the start of up-training (Ainslie et al. 2023, 2305.13245)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import KINDS, Config, ModelConfig, UserError, differences, require_translation
from transformer.model import Params
from transformer.tasks.sets import copy_sets
from transformer.tasks.vocabulary import vocabulary_in
from transformer.tools.new_workdir import new_workdir

PARTS = {
    "encoder": r"encoder/layers/\d+/self_attention",
    "decoder": r"decoder/layers/\d+/self_attention",
    "cross": r"decoder/layers/\d+/cross_attention",
}


def mean_pool(params: Params, old: ModelConfig, new: ModelConfig) -> Params:
    """The parameters of model `old`, converted to model `new` with fewer key/value heads: each new head is the mean of
    neighbouring old heads (2305.13245, §2.1).

    Key and value projections have shape DKH (d_model, key/value heads, head size), their biases KH. Raises `UserError`
    if the new number of heads does not divide the old one.
    """

    def pooled(path: str, x: Any) -> Any:
        for kind, pattern in PARTS.items():
            if re.fullmatch(pattern + "/(key|value)(_bias)?", path):
                *D, _, H = x.shape
                K = new.attention(kind).kv_heads
                return jnp.asarray(np.asarray(x).reshape(*D, K, -1, H).mean(axis=-2))
        return x

    def walk(tree: Any, path: str) -> Any:
        if hasattr(tree, "items"):
            return {name: walk(node, f"{path}/{name}".lstrip("/")) for name, node in tree.items()}
        return pooled(path, tree)

    for kind in KINDS:
        before, after = old.attention(kind).kv_heads, new.attention(kind).kv_heads
        if before % after:
            raise UserError(f"{kind} attention: {after} key/value heads do not divide the model's {before}")
    return walk(params, "")


def convert(workdir: str, out: str, model: ModelConfig, checkpoint: str | None = None) -> None:
    """Write a new workdir with a checkpoint of `workdir`, mean-pooled to the key/value heads of `model`.

    The new workdir can be evaluated, can translate, and can be the `train.init_from` of an up-training. train.py can't
    resume in it, because it has no optimiser state and no config.json of a run. Raises `UserError` if `model` differs
    in more than key/value heads, or if `out` is not a new or empty folder.
    """
    Checkpoints(workdir).read(checkpoint, lambda opened: _convert(opened, workdir, out, model))


def _convert(opened: Checkpoint, workdir: str, out: str, model: ModelConfig) -> None:
    require_translation(opened.config, workdir)
    old = opened.config
    for field in differences(Config(model=old.model), Config(model=model)):
        if not field.endswith("kv_heads"):
            raise UserError(f"{field}: only the number of key/value heads can be converted; use the value in {workdir}")
    write_start(opened, out, mean_pool(opened.finite_params(), old.model, model), model)


def write_start(opened: Checkpoint, out: str, params: Params, model: ModelConfig) -> None:
    """Write a workdir for `train.init_from`: `params` of `model`, with the other files of the opened checkpoint.

    Raises `UserError` if `out` is not a new or empty folder.
    """
    progress = opened.progress
    new_workdir(
        out,
        params,
        dataclasses.replace(opened.config, model=model),
        progress={key: progress[key] for key in ("step", "vocab_size")}
        | {"averaged_steps": progress.get("averaged_steps", [progress["step"]])},
        files=dict([vocabulary_in(opened).file]),
        more=lambda folder: copy_sets(opened.path.parent.parent, folder),
    )
