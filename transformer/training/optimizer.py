"""Adam with linear warmup and inverse square root decay (paper §5.3)."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import Array

from transformer.config import TrainConfig


def learning_rate(step: Array | int, *, d_model: int, warmup_steps: int, peak: float | None = None) -> Array:
    """The learning rate of update `step`, counted from 1 (paper §5.3, eq. 3).

    d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); with `peak`, the same curve scaled to reach it at the end
    of the warmup.
    """
    step = jnp.asarray(step, jnp.float32)
    if peak is None:
        peak = d_model**-0.5 * warmup_steps**-0.5
    return peak * jnp.minimum((warmup_steps / step) ** 0.5, step / warmup_steps)


def optimizer(config: TrainConfig, d_model: int) -> optax.GradientTransformation:
    """Adam with that schedule. Optax counts updates from 0 and the paper from 1, hence the + 1."""

    def schedule(count: Array) -> Array:
        return learning_rate(
            count + 1, d_model=d_model, warmup_steps=config.warmup_steps, peak=config.peak_learning_rate
        )

    adam = optax.adam(schedule, b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps)
    return adam if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
