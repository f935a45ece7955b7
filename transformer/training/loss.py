"""Cross-entropy with label smoothing (paper §5.4), as sums and weights that are divided once, at the very end.

Logits are made here, a few positions at a time, and each part's share of the gradient at once: an array of all
positions by all pieces, the largest of a training step by far, never exists.

Shapes: B batch, T positions, C positions of a part, D model, V vocabulary, X all positions of a part.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer.model.layers import einsum

PARTS = 8  # at most; as many as divide T


class _Options(NamedTuple):
    smoothing: float
    parts: int


def cross_entropy(
    x_BTD: Array,
    table_VD: Array,
    target_BT: Array,
    weights_BT: Array,
    *,
    smoothing: float = 0.0,
    parts: int = PARTS,
) -> tuple[Array, Array]:
    """Sums over all positions, in nats: the smoothed loss, and the negative log-likelihood of the targets.

    The logits are x_BTD table_VD^T, in float32. The smoothed target distribution is 1 - smoothing on the target plus
    smoothing / V on each of the V pieces, the target included (Szegedy et al. 2016, §7). Differentiable in x and the
    table, through the first sum only. `parts` bounds how many parts the positions are taken in.
    """
    options = _Options(smoothing, math.gcd(x_BTD.shape[1], parts))
    loss, nll = _summed(options, x_BTD, table_VD, target_BT, weights_BT)
    return loss, jax.lax.stop_gradient(nll)


def _parts(array: Array, n: int) -> Array:
    """(B, T, ...) as (n, B * T / n, ...): parts along T, so that rows stay on the devices where they lie."""
    B, T, *rest = array.shape
    return array.reshape(B, n, T // n, *rest).swapaxes(0, 1).reshape(n, -1, *rest)


def _part(smoothing: float, x_XD: Array, table_VD: Array, target_X: Array, weights_X: Array) -> tuple:
    """The two sums of a part, and what its gradient takes: logits and their log-sum-exp.

    With lse = log sum exp of the logits, the cross-entropy with the smoothed distribution is
    lse - (1 - smoothing) * logit[target] - smoothing * mean(logits).
    """
    logits_XV = einsum("XD,VD->XV", x_XD, table_VD)
    largest_X1 = jnp.max(logits_XV, axis=1, keepdims=True)
    lse_X = jnp.log(jnp.sum(jnp.exp(logits_XV - largest_X1), axis=1)) + largest_X1[:, 0]
    target_logit_X = jnp.take_along_axis(logits_XV, target_X[:, None], axis=1)[:, 0]
    loss_X = lse_X - (1 - smoothing) * target_logit_X - smoothing * jnp.mean(logits_XV, axis=1)
    return jnp.sum(loss_X * weights_X), jnp.sum((lse_X - target_logit_X) * weights_X), logits_XV, lse_X


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(options: _Options, x_BTD: Array, table_VD: Array, target_BT: Array, weights_BT: Array) -> tuple:
    smoothing, n = options
    table_VD = table_VD.astype(x_BTD.dtype)

    def add(sums: tuple[Array, Array], part: tuple) -> tuple[tuple[Array, Array], None]:
        loss, nll, *_ = _part(smoothing, part[0], table_VD, *part[1:])
        return (sums[0] + loss, sums[1] + nll), None

    parts = tuple(_parts(array, n) for array in (x_BTD, target_BT, weights_BT))
    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), parts)[0]


def _forward(options: _Options, x_BTD: Array, table_VD: Array, target_BT: Array, weights_BT: Array) -> tuple:
    smoothing, n = options
    V, dtype = table_VD.shape[0], table_VD.dtype
    table_VD = table_VD.astype(x_BTD.dtype)  # once, not for each part

    def add(carry: tuple, part: tuple) -> tuple[tuple, Array]:
        loss_sum, nll_sum, dtable_VD = carry
        x_XD, target_X, weights_X = part
        loss, nll, logits_XV, lse_X = _part(smoothing, x_XD, table_VD, target_X, weights_X)
        # The softmax minus the smoothed distribution. A comparison fuses into the pass; a gather's own gradient would
        # be a scatter.
        smoothed_XV = jnp.where(jnp.arange(V) == target_X[:, None], 1 - smoothing, 0.0) + smoothing / V
        dlogits_XV = (jnp.exp(logits_XV - lse_X[:, None]) - smoothed_XV) * weights_X[:, None]
        dlogits_XV = dlogits_XV.astype(x_XD.dtype)
        dx_XD = einsum("XV,VD->XD", dlogits_XV, table_VD).astype(x_XD.dtype)
        dtable_VD = dtable_VD + einsum("XV,XD->VD", dlogits_XV, x_XD)
        return (loss_sum + loss, nll_sum + nll, dtable_VD), dx_XD

    parts = tuple(_parts(array, n) for array in (x_BTD, target_BT, weights_BT))
    nothing = jnp.float32(0), jnp.float32(0), jnp.zeros(table_VD.shape, jnp.float32)
    (loss, nll, dtable_VD), dx_nXD = jax.lax.scan(add, nothing, parts)
    B, T, D = x_BTD.shape
    dx_BTD = dx_nXD.reshape(n, B, T // n, D).swapaxes(0, 1).reshape(B, T, D)
    return (loss, nll), (dx_BTD, dtable_VD.astype(dtype))


def _backward(options: _Options, kept: tuple[Array, Array], cotangents: tuple[Array, Array]) -> tuple:
    dx_BTD, dtable_VD = kept
    return dx_BTD * cotangents[0].astype(dx_BTD.dtype), dtable_VD * cotangents[0], None, None


_summed.defvjp(_forward, _backward)
