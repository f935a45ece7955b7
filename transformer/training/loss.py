"""Cross-entropy with label smoothing (paper §5.4), as sums that the caller divides by the sum of weights.

The positions are processed in parts. Each part computes its logits and its share of the gradient together. So the
array of all logits (B, T, V), by far the largest of a training step, never exists.

Shapes: B batch, T positions, D model, V vocabulary, W ways (the groups of devices that rows are cut over), X positions
of a part on one of the ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from transformer.model.products import einsum
from transformer.training.sharding import BATCH_AXES, Copies, batch_ways, constrain

PARTS = 8  # the most parts; the number of parts also divides T


class _Options(NamedTuple):
    smoothing: float
    parts: int
    mesh: Mesh | None

    @property
    def ways(self) -> int:
        return batch_ways(self.mesh)

    def table(self, table_WVD: Array, dtype: jnp.dtype) -> Array:
        """The table cast to the type of the products, once for all parts."""
        return constrain(table_WVD.astype(dtype), self.mesh, P(BATCH_AXES, "tensor"))


@jax.named_scope("cross_entropy")
def cross_entropy(
    x_BTD: Array,
    table: Array | Copies,
    label_BT: Array,
    weights_BT: Array,
    bias_V: Array | None = None,
    *,
    smoothing: float = 0.0,
    parts: int = PARTS,
) -> tuple[Array, Array]:
    """The smoothed loss and the negative log-likelihood of the labels: weighted sums over all positions, in nats.

    The logits are x_BTD table_VD^T, plus bias_V if given, in float32. The smoothed distribution is
    1 - smoothing on the label plus smoothing / V on each of the V pieces, the label included (Szegedy et al. 2016,
    §7). Only the first sum is differentiable, in x, table and bias. `parts`: the largest number of parts. If rows are
    cut over the devices of a mesh, `table` must be `Copies` on that mesh, and B a multiple of the number of copies.
    """
    copies = table if isinstance(table, Copies) else Copies(table[None], None)
    options = _Options(smoothing, math.gcd(x_BTD.shape[1], parts), copies.mesh)
    loss, nll = _summed(options, x_BTD, copies.table_WVD, bias_V, label_BT, weights_BT)
    return loss, jax.lax.stop_gradient(nll)


@jax.named_scope("divergence")
def divergence(
    x_BTD: Array,
    y_BTD: Array,
    table: Array | Copies,
    weights_BT: Array,
    bias_V: Array | None = None,
    *,
    parts: int = PARTS,
) -> Array:
    """(KL(p || q) + KL(q || p)) / 2 of the distributions p and q that two arrays of states give, in nats: a weighted
    sum over all positions. Differentiable in the states, table and bias. Arguments as in `cross_entropy`.

    The backward pass computes the logits of each part again.
    """
    copies = table if isinstance(table, Copies) else Copies(table[None], None)
    options = _Options(0.0, math.gcd(x_BTD.shape[1], parts), copies.mesh)
    table_WVD = options.table(copies.table_WVD, x_BTD.dtype)

    @jax.checkpoint
    def part_sum(table_VD: Array, x_XD: Array, y_XD: Array, weights_X: Array) -> Array:
        log_p_XV, log_q_XV = (
            jax.nn.log_softmax(einsum("XD,VD->XV", states_XD, table_VD) + (0.0 if bias_V is None else bias_V))
            for states_XD in (x_XD, y_XD)
        )
        both_X = jnp.sum((jnp.exp(log_p_XV) - jnp.exp(log_q_XV)) * (log_p_XV - log_q_XV), axis=1)
        return jnp.sum(both_X * weights_X) / 2

    def add(sum_W: Array, part: tuple) -> tuple[Array, None]:
        return sum_W + _over_ways(part_sum, options.ways)(table_WVD, *part), None

    arrays = tuple(_parts(options, array) for array in (x_BTD, y_BTD, weights_BT))
    sum_W, _ = jax.lax.scan(add, jnp.zeros(options.ways), arrays)
    return jnp.sum(sum_W)


def _parts(options: _Options, array: Array) -> Array:
    """(B, T, ...) as (parts, W, B / W * T / parts, ...). Parts are cut along T, so that rows stay on their devices."""
    B, T, *rest = array.shape
    n, W = options.parts, options.ways
    parts = (
        array.reshape(W, B // W, n, T // n, *rest)
        .transpose(2, 0, 1, 3, *range(4, array.ndim + 2))
        .reshape(n, W, -1, *rest)
    )
    return constrain(parts, options.mesh, P(None, BATCH_AXES))


def _part(
    smoothing: float, x_XD: Array, table_VD: Array, bias_V: Array | None, label_X: Array, weights_X: Array
) -> tuple:
    """The two sums of a part, and for its gradient the logits and their log-sum-exp.

    With lse = log sum exp of the logits, the cross-entropy with the smoothed distribution is
    lse - (1 - smoothing) * logit[label] - smoothing * mean(logits).
    """
    logits_XV = einsum("XD,VD->XV", x_XD, table_VD)
    if bias_V is not None:
        logits_XV = logits_XV + bias_V
    largest_X1 = jnp.max(logits_XV, axis=1, keepdims=True)
    lse_X = jnp.log(jnp.sum(jnp.exp(logits_XV - largest_X1), axis=1)) + largest_X1[:, 0]
    label_logit_X = jnp.take_along_axis(logits_XV, label_X[:, None], axis=1)[:, 0]
    loss_X = lse_X - (1 - smoothing) * label_logit_X - smoothing * jnp.mean(logits_XV, axis=1)
    return jnp.sum(loss_X * weights_X), jnp.sum((lse_X - label_logit_X) * weights_X), logits_XV, lse_X


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    options: _Options, x_BTD: Array, table_WVD: Array, bias_V: Array | None, label_BT: Array, weights_BT: Array
) -> tuple:
    table_WVD = options.table(table_WVD, x_BTD.dtype)

    def part_sums(table_VD: Array, x_XD: Array, label_X: Array, weights_X: Array) -> tuple[Array, Array]:
        return _part(options.smoothing, x_XD, table_VD, bias_V, label_X, weights_X)[:2]

    def add(sums: tuple, part: tuple) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, sums, _over_ways(part_sums, options.ways)(table_WVD, *part)), None

    parts = tuple(_parts(options, array) for array in (x_BTD, label_BT, weights_BT))
    sums, _ = jax.lax.scan(add, (jnp.zeros(options.ways),) * 2, parts)
    return tuple(jnp.sum(one) for one in sums)


def _over_ways(function: Callable, ways: int) -> Callable:
    """Map `function` over a leading axis of size `ways`. A single way is not mapped, so its products stay 2-D."""
    if ways > 1:
        return jax.vmap(function)
    return lambda *arrays: jax.tree.map(lambda x: x[None], function(*(array[0] for array in arrays)))


def _forward(
    options: _Options, x_BTD: Array, table_WVD: Array, bias_V: Array | None, label_BT: Array, weights_BT: Array
) -> tuple:
    smoothing, n, W = options.smoothing, options.parts, options.ways
    V, dtype = table_WVD.shape[1], table_WVD.dtype
    table_WVD = options.table(table_WVD, x_BTD.dtype)

    def part_gradients(table_VD: Array, x_XD: Array, label_X: Array, weights_X: Array) -> tuple:
        loss, nll, logits_XV, lse_X = _part(smoothing, x_XD, table_VD, bias_V, label_X, weights_X)
        # The softmax minus the smoothed distribution. The comparison fuses with the rest; a gather would have a
        # scatter as its gradient.
        smoothed_XV = jnp.where(jnp.arange(V) == label_X[:, None], 1 - smoothing, 0.0) + smoothing / V
        dlogits_XV = (jnp.exp(logits_XV - lse_X[:, None]) - smoothed_XV) * weights_X[:, None]
        dbias_V = None if bias_V is None else jnp.sum(dlogits_XV, axis=0)
        dlogits_XV = dlogits_XV.astype(x_XD.dtype)
        dx_XD = einsum("XV,VD->XD", dlogits_XV, table_VD).astype(x_XD.dtype)
        return loss, nll, dbias_V, einsum("XV,XD->VD", dlogits_XV, x_XD), dx_XD

    def add(sums: tuple, part: tuple) -> tuple[tuple, Array]:
        *more, dx_WXD = _over_ways(part_gradients, W)(table_WVD, *part)
        *sums, dtable_WVD = jax.tree.map(jnp.add, sums, tuple(more))
        return (*sums, constrain(dtable_WVD, options.mesh, P(BATCH_AXES, "tensor"))), dx_WXD

    parts = tuple(_parts(options, array) for array in (x_BTD, label_BT, weights_BT))
    no_bias = None if bias_V is None else jnp.zeros((W, V))
    nothing = jnp.zeros(W), jnp.zeros(W), no_bias, jnp.zeros(table_WVD.shape)
    (loss_W, nll_W, dbias_WV, dtable_WVD), dx_nWXD = jax.lax.scan(add, nothing, parts)
    B, T, D = x_BTD.shape
    dx_BTD = dx_nWXD.reshape(n, W, B // W, T // n, D).transpose(1, 2, 0, 3, 4).reshape(B, T, D)
    dbias_V = None if bias_V is None else jnp.sum(dbias_WV, axis=0)
    return (jnp.sum(loss_W), jnp.sum(nll_W)), (dx_BTD, dtable_WVD.astype(dtype), dbias_V)


def _backward(options: _Options, kept: tuple[Array, Array, Array | None], cotangents: tuple[Array, Array]) -> tuple:
    dx_BTD, dtable_WVD, dbias_V = kept
    dbias_V = None if dbias_V is None else dbias_V * cotangents[0]
    return dx_BTD * cotangents[0].astype(dx_BTD.dtype), dtable_WVD * cotangents[0], dbias_V, None, None


_summed.defvjp(_forward, _backward)
