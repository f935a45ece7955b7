"""Adam with linear warmup and inverse square root decay (paper §5.3); AdamW, and linear or cosine decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from transformer.config import TrainConfig


def learning_rate(step: Array | int, config: TrainConfig, d_model: int) -> Array:
    """The learning rate of update `step`, counted from 1.

    It rises linearly to `peak_learning_rate` at the end of the warmup; without a peak, to that of the paper (§5.3,
    eq. 3): d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5). Then it decays by `schedule`.
    """
    step, warmup = jnp.asarray(step, jnp.float32), config.warmup_steps
    peak = d_model**-0.5 * warmup**-0.5 if config.peak_learning_rate is None else config.peak_learning_rate
    if config.schedule == "inverse_sqrt":
        return peak * jnp.minimum((warmup / step) ** 0.5, step / warmup)
    done = jnp.clip((step - warmup) / (config.decay_steps - warmup), 0, 1)
    left = 1 - done if config.schedule == "linear" else (1 + jnp.cos(jnp.pi * done)) / 2
    floor = config.final_learning_rate
    return peak * jnp.minimum(floor + (1 - floor) * left, step / warmup)


Rate = Callable[[str], float] | None
"""The factor of the learning rate of each parameter, by its path (see `training.task.Objective`)."""


def optimizer(config: TrainConfig, d_model: int, rate: Rate = None) -> optax.GradientTransformation:
    """Adam with that schedule. Optax counts updates from 0 and the paper from 1, hence the + 1.

    Gradients come clipped (see `train_step`).
    """

    def schedule(count: Array) -> Array:
        return learning_rate(count + 1, config, d_model)

    options = {"b1": config.adam_b1, "b2": config.adam_b2, "eps": config.adam_eps}
    if config.weight_decay:
        adam = optax.adamw(schedule, **options, weight_decay=config.weight_decay, mask=decayed)
    else:
        adam = optax.adam(schedule, **options)
    clip = [] if config.clip_norm is None else [optax.identity()]  # keeps the form of states saved before
    scale = [] if rate is None else [optax.stateless(lambda updates, _: _scaled(updates, rate))]
    return optax.chain(*clip, adam, *scale) if clip or scale else adam


def _scaled(updates: Any, rate: Callable[[str], float]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda keys, x: x * rate(_path(keys)), updates)


def without_frozen(params: Any, rate: Rate) -> Any:
    """The parameters. No gradient is computed of those whose rate is 0."""
    if rate is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: x if rate(_path(keys)) else jax.lax.stop_gradient(x), params
    )


def _path(keys: tuple) -> str:
    return "/".join(key.key for key in keys)


def decayed(params: Any) -> Any:
    """For each parameter, whether weight decay applies: not to biases and norms."""

    def leaf(keys: tuple, _: Any) -> bool:
        name = keys[-1].key
        return not (name in ("scale", "b1", "b2") or name.endswith("bias"))

    return jax.tree_util.tree_map_with_path(leaf, params)
