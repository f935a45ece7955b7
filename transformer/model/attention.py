"""Scaled dot-product attention (paper §3.2), split into its keys and values and its use of them.

Cross-attention memory, the KV cache of decoding, multi-query and grouped-query attention are all the same thing here:
a `KV` computed somewhere, attended to somewhere else.

Shapes: B batch, T query length, S key length, D model, N query heads, K key/value heads, G = N / K, H head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from transformer.model.layers import product

MASKED = -1e30  # finite, so that a fully masked row has a finite softmax and finite gradients


class KV(NamedTuple):
    """Keys and values of S positions: the memory of cross-attention, or the cache of decoding."""

    k_BSKH: Array
    v_BSKH: Array


def attend(q_BTNH: Array, kv: KV, mask_BTS: Array, *, want_weights: bool = False) -> tuple[Array, Array | None]:
    """softmax(q k^T / sqrt(H)) v (paper §3.2.1, eq. 1), the softmax in float32.

    `mask_BTS` is boolean, True = may attend, and may have size 1 where it is the same for all. N must be a multiple
    of K: each key/value head serves N / K neighbouring query heads. A row that may attend nowhere yields zeros.
    Returns y_BTNH, with H the size of a value head, and weights_BNTS if wanted (else None).
    """
    B, T, N, H = q_BTNH.shape
    K = kv.k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, kv.k_BSKH, preferred_element_type=jnp.float32)
    mask = mask_BTS[:, None, None]
    logits_BKGTS = jnp.where(mask, logits_BKGTS * H**-0.5, MASKED)
    weights_BKGTS = jnp.where(mask, jax.nn.softmax(logits_BKGTS), 0.0)
    y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(kv.v_BSKH.dtype), kv.v_BSKH)
    weights = weights_BKGTS.reshape(B, N, T, -1) if want_weights else None
    return y_BTKGH.reshape(B, T, N, -1), weights


def write(cache: KV, new: KV, at_B: Array) -> KV:
    """The cache (rows B, room for S positions) with the T new positions of row b written from `at_B[b]` on."""

    def row(old_SKH: Array, new_TKH: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(old_SKH, new_TKH.astype(old_SKH.dtype), (at, 0, 0))

    return KV(*(jax.vmap(row)(old, fresh, at_B) for old, fresh in zip(cache, new, strict=True)))


class Attention(nnx.Module):
    """Multi-head attention (paper §3.2.2), without biases; grouped-query or multi-query when kv_heads < heads."""

    def __init__(self, d_model: int, heads: int, kv_heads: int, d_k: int, d_v: int, *, rngs: nnx.Rngs):
        def glorot(fan_in: int, fan_out: int, shape: tuple[int, ...]) -> nnx.Param:
            limit = (6 / (fan_in + fan_out)) ** 0.5
            return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit))

        self.query = glorot(d_model, heads * d_k, (d_model, heads, d_k))
        self.key = glorot(d_model, kv_heads * d_k, (d_model, kv_heads, d_k))
        self.value = glorot(d_model, kv_heads * d_v, (d_model, kv_heads, d_v))
        self.output = glorot(heads * d_v, d_model, (heads, d_v, d_model))

    def kv(self, x_BSD: Array) -> KV:
        """Keys and values of x, to be attended to now or later."""
        return KV(product(x_BSD, self.key[...]), product(x_BSD, self.value[...]))

    def __call__(
        self, x_BTD: Array, kv: KV, mask_BTS: Array, *, want_weights: bool = False
    ) -> tuple[Array, Array | None]:
        """Attention of x over kv: y_BTD, and weights_BNTS if wanted.

        x may have M times the rows of kv (the M beams of a sentence stand side by side and share its memory):
        then they are taken as M * T queries of one sentence, and mask_BTS must be the same for all T.
        """
        q_BTNH = product(x_BTD, self.query[...])
        rows, T, N, H = q_BTNH.shape
        B = kv.k_BSKH.shape[0]
        y_BTNH, weights = attend(q_BTNH.reshape(B, -1, N, H), kv, mask_BTS, want_weights=want_weights)
        if weights is not None:
            S = weights.shape[-1]
            weights = weights.reshape(B, N, rows // B, T, S).swapaxes(1, 2).reshape(rows, N, T, S)
        y_BTNH = y_BTNH.reshape(rows, T, N, -1)
        return product(y_BTNH, self.output[...], axes=2), weights
