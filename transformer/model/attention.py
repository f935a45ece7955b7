"""Attention (paper §3.2) in two steps: compute keys and values, then attend to them.

Cross-attention memory, the KV cache of decoding, multi-query, grouped-query and cross-layer attention all use the same
mechanism: one place computes a `KV`, another place attends to it.

Shapes: B batch, T query length, S key length, D model, N query heads, K key/value heads, G = N / K, H head size,
M beams.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ModelConfig
from .initializers import Distributions, constant, matrix
from .layers import dropout
from .products import einsum, product

MASKED = -1e30  # finite, so that a fully masked row has a finite softmax and finite gradients
# The most sums of a query and a key, by coordinate, that additive attention computes at a time. On a CPU they should
# fit into its cache.
SUMS = {"cpu": 2**20, "other": 2**26}


class KV(NamedTuple):
    """Keys and values of S positions: the memory of cross-attention, or the cache of decoding.

    Both have the memory layout that the two matrix products of attention read; keys have positions last. Decoding
    reads the cache at every step, and a transposition there would cost many times the products themselves.
    """

    k_BKHS: Array
    v_BKSH: Array


def dot(q_BKXH: Array, k_BKHS: Array) -> Array:
    """q k^T / sqrt(H) (paper §3.2.1), float32: logits_BKXS."""
    return einsum("BKXH,BKHS->BKXS", q_BKXH.astype(k_BKHS.dtype), k_BKHS) * q_BKXH.shape[-1] ** -0.5


def unscaled(q_BKXH: Array, k_BKHS: Array) -> Array:
    """q k^T, float32: logits_BKXS."""
    return einsum("BKXH,BKHS->BKXS", q_BKXH.astype(k_BKHS.dtype), k_BKHS)


def additive(q_BKXH: Array, k_BKHS: Array, *, score_HN: Array) -> Array:
    """v^T tanh(q + k), with a v of each query head (Bahdanau et al. 2015, appendix A.1.2), float32: logits_BKXS.

    Computed for a few queries at a time, in the backward pass again, since the array of all sums is H times as large as
    the logits.
    """
    B, K, X, H = q_BKXH.shape
    G, S = score_HN.shape[1] // K, k_BKHS.shape[3]
    v_KXH = jnp.repeat(score_HN.T.reshape(K, G, H), X // G, axis=1)
    most = SUMS.get(jax.default_backend(), SUMS["other"])
    known = all(isinstance(size, int) for size in (B, X, S))  # else symbolic, in an exported program
    fits = (n for n in range(1, X + 1) if X % n == 0 and (B * K * (X // n) * H * S <= most or n == X)) if known else ()
    blocks = next(iter(fits), 1)

    @jax.checkpoint
    def block(of: tuple[Array, Array]) -> Array:
        q_BKXH, v_KXH = of
        sums_BKXHS = jnp.tanh((q_BKXH[..., None] + k_BKHS[:, :, None]).astype(jnp.float32))
        return jnp.sum(v_KXH[..., None].astype(jnp.float32) * sums_BKXHS, axis=3)

    if blocks == 1:
        return block((q_BKXH, v_KXH))
    parts = q_BKXH.reshape(B, K, blocks, -1, H).transpose(2, 0, 1, 3, 4), v_KXH.reshape(K, blocks, -1, H).swapaxes(0, 1)
    return jax.lax.map(block, parts).transpose(1, 2, 0, 3, 4).reshape(B, K, X, S)


@jax.named_scope("attend")
def attend(
    q_BTNH: Array,
    kv: KV,
    mask_BTS: Array,
    *,
    logits: Callable[[Array, Array], Array] = dot,
    dropout_rate: float = 0.0,
    key: Array | None = None,
    want_weights: bool = False,
) -> tuple[Array, Array | None]:
    """softmax(logits(q, k)) v (paper §3.2.1, eq. 1), with the softmax in float32.

    `mask_BTS` is boolean, True = may attend; an axis that is the same for all may have size 1. N must be a multiple
    of K, else ValueError: each key/value head serves N / K neighbouring query heads. A fully masked row yields zeros.
    A `key` switches on dropout of the weights.

    Returns y_BTNH, where H is the size of a value head, and weights_BNTS before dropout if `want_weights`, else None.
    """
    B, T, N, H = q_BTNH.shape
    K = kv.k_BKHS.shape[1]
    if N % K:  # the reshape below would mix positions
        raise ValueError(f"{N} query heads can't share {K} key/value heads: the first number must be a multiple")
    # The G query heads of one key head become further queries of this head: X = G * T.
    q_BKXH = q_BTNH.swapaxes(1, 2).reshape(B, K, -1, H)
    logits_BKXS = logits(q_BKXH, kv.k_BKHS)
    mask_BNTS = mask_BTS[:, None]
    logits_BNTS = jnp.where(mask_BNTS, logits_BKXS.reshape(B, N, T, -1), MASKED)
    weights_BNTS = jnp.where(mask_BNTS, jax.nn.softmax(logits_BNTS), 0.0)
    kept_BNTS = dropout(weights_BNTS, dropout_rate, key)
    weights_BKXS = kept_BNTS.reshape(logits_BKXS.shape).astype(kv.v_BKSH.dtype)
    y_BKXH = einsum("BKXS,BKSH->BKXH", weights_BKXS, kv.v_BKSH)
    y_BTNH = y_BKXH.reshape(B, N, T, -1).swapaxes(1, 2).astype(q_BTNH.dtype)
    return y_BTNH, weights_BNTS if want_weights else None


@jax.named_scope("attend")
def fused(q_BTNH: Array, kv: KV, mask_BTS: Array, implementation: str = "cudnn") -> Array:
    """The y_BTNH of `attend`, in q's type, by one kernel that never stores the weights (Dao et al. 2022)."""
    B, T, _, _ = q_BTNH.shape
    k_BSKH, v_BSKH = kv.k_BKHS.transpose(0, 3, 1, 2), kv.v_BKSH.swapaxes(1, 2)
    mask_BTS = jnp.broadcast_to(mask_BTS, (B, T, k_BSKH.shape[1]))
    y_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None], implementation=implementation)
    # The kernel gives a fully masked row the mean of all values; `attend` gives zeros.
    return jnp.where(jnp.any(mask_BTS, axis=-1)[..., None, None], y_BTNH, 0)


def fusible(q_BTNH: Array, kv: KV) -> bool:
    """Whether cuDNN's kernel computes the same as `attend` for these arrays.

    It does on NVIDIA GPUs, in 16 bits, with key and value heads of the same size (a multiple of 8, at most 128), and
    even lengths.
    """
    _, T, _, H = q_BTNH.shape
    S, H_v = kv.v_BKSH.shape[2:]
    sizes = H_v == H and H % 8 == 0 and H <= 128 and T % 2 == 0 and S % 2 == 0
    return jax.default_backend() == "gpu" and q_BTNH.dtype.itemsize == 2 and sizes


@jax.named_scope("write_cache")
def write(cache: KV, end: Array | int, new: KV) -> KV:
    """Write T new positions of each of the M beams per sentence into the cache, from slot `end` on.

    The cache has B rows. `new` has B * M rows: the M beams of a sentence are neighbouring rows. Position t of beam m
    goes to slot end + t * M + m.
    """
    rows, K, H, T = new.k_BKHS.shape
    M = rows // cache.k_BKHS.shape[0]
    k_BKHS = new.k_BKHS.reshape(-1, M, K, H, T).transpose(0, 2, 3, 4, 1).reshape(rows // M, K, H, T * M)
    v_BKSH = new.v_BKSH.reshape(rows // M, M, K, T, -1).transpose(0, 2, 3, 1, 4).reshape(rows // M, K, T * M, -1)

    def put(old: Array, fresh: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, fresh.astype(old.dtype), end, axis)

    return KV(put(cache.k_BKHS, k_BKHS, 3), put(cache.v_BKSH, v_BKSH, 2))


def rotate(x_BTNH: Array, positions_BT: Array) -> Array:
    """Rotary position embedding of queries or keys (RoPE, Su et al. 2021, arXiv 2104.09864, eq. 15).

    Dimensions i and i + H/2 are a pair, rotated by the angle position / 10000^(2i / H), as in GPT-NeoX and Llama. The
    dot product of a query and a key then depends on their positions only through the distance.
    """
    half = x_BTNH.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BT1H = (positions_BT[..., None].astype(jnp.float32) * frequencies)[:, :, None]
    cos, sin = jnp.cos(angles_BT1H), jnp.sin(angles_BT1H)
    a, b = x_BTNH[..., :half].astype(jnp.float32), x_BTNH[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTNH.dtype)


class Attention(nnx.Module):
    """Multi-head attention (paper §3.2.2); grouped-query or multi-query when kv_heads < heads.

    With `own_kv` false, the layer has no key and value matrices and uses the `KV` of another layer (Brandon et al.
    2024). `start`: the distribution of each matrix's initial values, by its name.
    """

    def __init__(
        self,
        config: ModelConfig,
        kind: Literal["encoder", "decoder", "cross"],
        *,
        own_kv: bool = True,
        start: Distributions,
        rngs: nnx.Rngs,
    ):
        c, kv_heads = config, config.attention(kind).kv_heads

        def bias(*shape: int, wanted: bool = True) -> nnx.Param | None:
            return constant(0, shape) if c.attention_bias and wanted else None

        self.kernel, self.dropout_rate, self.compared_by = c.attention_kernel, c.attention_dropout, c.attention_score
        self.rotary = c.positions == "rotary" and kind != "cross"
        self.query = matrix(start["query"], rngs, (c.d_model, c.heads, c.key_size))
        self.key = matrix(start["key"], rngs, (c.d_model, kv_heads, c.key_size)) if own_kv else None
        own_values = own_kv and c.values == "projected"
        self.value = matrix(start["value"], rngs, (c.d_model, kv_heads, c.value_size)) if own_values else None
        self.output = matrix(start["output"], rngs, (c.heads, c.value_size, c.d_model), inner=2)
        self.query_bias = bias(c.heads, c.key_size)
        self.key_bias = bias(kv_heads, c.key_size, wanted=own_kv)
        self.value_bias = bias(kv_heads, c.value_size, wanted=own_values)
        self.output_bias = bias(c.d_model)
        learned = c.attention_score == "additive"
        self.score = matrix(start["query"], rngs, (c.key_size, c.heads)) if learned else None
        self.score_bias = constant(0, (c.heads, c.key_size)) if learned else None

    def kv(self, x_BSD: Array, positions_BS: Array | None = None) -> KV:
        """Keys and values of x. `positions_BS` is needed only for rotary positions."""
        k_BSKH = affine(x_BSD, self.key, self.key_bias)
        v_BSKH = k_BSKH if self.value is None else affine(x_BSD, self.value, self.value_bias)
        if self.rotary:
            k_BSKH = rotate(k_BSKH, positions_BS)
        return KV(k_BSKH.transpose(0, 2, 3, 1), v_BSKH.swapaxes(1, 2))

    def __call__(
        self,
        x_BTD: Array,
        kv: KV,
        mask_BTS: Array,
        positions_BT: Array | None = None,
        *,
        key: Array | None = None,
        want_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        """Attention of x over kv. Returns y_BTD, and weights_BNTS if `want_weights`, else None.

        A `key` switches dropout on. `positions_BT` is needed only for rotary positions. x may have M times the rows of
        kv: then M neighbouring rows are the beams of one sentence and share its keys and values. They become M * T
        queries of this sentence, so mask_BTS has M * T queries per row, or 1.
        """
        q_BTNH = affine(x_BTD, self.query, self.query_bias)
        if self.rotary:
            q_BTNH = rotate(q_BTNH, positions_BT)
        rows, T, N, H = q_BTNH.shape
        B = kv.k_BKHS.shape[0]
        q_BTNH = q_BTNH.reshape(B, -1, N, H)
        if self.kernel == "cudnn" and not want_weights and fusible(q_BTNH, kv):
            y_BTNH, weights = fused(q_BTNH, kv, mask_BTS), None
        else:
            logits, options = dot, {"dropout_rate": self.dropout_rate, "key": key, "want_weights": want_weights}
            if self.compared_by == "unscaled":
                logits = unscaled
            elif self.score is not None:
                logits = partial(additive, score_HN=self.score[...])
                q_BTNH = (q_BTNH + self.score_bias[...]).astype(q_BTNH.dtype)
            y_BTNH, weights = attend(q_BTNH, kv, mask_BTS, logits=logits, **options)
        if weights is not None:
            S = weights.shape[-1]
            weights = weights.reshape(B, N, rows // B, T, S).swapaxes(1, 2).reshape(rows, N, T, S)
        y_BTNH = y_BTNH.reshape(rows, T, N, -1)
        return affine(y_BTNH, self.output, self.output_bias, axes=2), weights


def affine(x: Array, w: nnx.Param, bias: nnx.Param | None, axes: int = 1) -> Array:
    """x w + bias, in x's type, with the sum in float32. `axes` as in `product`."""
    if bias is None:
        return product(x, w[...], axes)
    return (product(x, w[...], axes, jnp.float32) + bias[...]).astype(x.dtype)
