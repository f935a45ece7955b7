"""What the stacks are made of besides attention: embeddings, positions, feed-forward, norm and dropout.

Parameters are float32; matrix products run in the type of their input; norms are computed in float32.
Shapes: B batch, T length, D model, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

from transformer.model.initializers import Matrices, constant, matrix, normal
from transformer.model.rounding import Rounded, rounded_product


def fold(key: Array | None, i: int) -> Array | None:
    """The i-th key derived from `key`; None, which stands for no dropout, stays None."""
    return None if key is None else jax.random.fold_in(key, i)


def product(x: Array, w: Array | Rounded, axes: int = 1, dtype: jnp.dtype | None = None) -> Array:
    """x times w, contracted over the last `axes` dimensions of x and the first `axes` of w, in x's type; the result in
    that type too, or in `dtype`.

    Done as one two-dimensional product: XLA on CPU is up to a fifth faster at it: no gradient needs a transposition.
    """
    batch, inner, outer = x.shape[:-axes], w.shape[:axes], w.shape[axes:]
    size = math.prod(inner)
    w_DE = w if isinstance(w, Rounded) else w.reshape(size, -1)
    return matmul(x.reshape(-1, size), w_DE, dtype or x.dtype).reshape(*batch, *outer)


def matmul(x_XD: Array, w: Array | Rounded, dtype: jnp.dtype, w_axis: int = 0) -> Array:
    """x w, or x w^T where `w_axis`, the axis of w that is summed over, is 1, as `einsum` does it; of type `dtype`."""
    if isinstance(w, Rounded):  # which knows its axes itself
        return rounded_product(x_XD, w).astype(dtype)
    return einsum("XD,ED->XE" if w_axis else "XD,DE->XE", x_XD, w).astype(dtype)


def einsum(subscripts: str, a: Array, b: Array) -> Array:
    """A product in the type of a, its sums and its result in float32. Each index stands in at least two of the three.

    The gradient of b, which may be a wider type, is not rounded to that of a.
    """
    if a.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    return _narrow_einsum(subscripts, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_einsum(subscripts: str, a: Array, b: Array) -> Array:
    # JAX's own gradient of a product of 16-bit numbers with a float32 result is a product of float32 with 16-bit ones,
    # which no matrix unit does; here all three products are 16-bit, summed in float32. XLA on CPU has AMX for these
    # alone: with a 16-bit result they take four to eight times as long.
    return _narrow_product(subscripts, a, b.astype(a.dtype))


def _narrow_forward(subscripts: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_einsum(subscripts, a, b), (a, b)


def _narrow_backward(subscripts: str, kept: tuple[Array, Array], dc: Array) -> tuple[Array, Array]:
    a, b = kept
    of_a, of_b, of_c = _indices(subscripts)
    dc = dc.astype(a.dtype)
    da = _narrow_product(f"{of_c},{of_b}->{of_a}", dc, b.astype(a.dtype))
    db = _narrow_product(f"{of_a},{of_c}->{of_b}", a, dc)
    return da.astype(a.dtype), db.astype(b.dtype)


def _narrow_product(subscripts: str, a: Array, b: Array) -> Array:
    of_a, of_b, of_c = _indices(subscripts)
    if of_c[-1] in of_a:  # so that einsum won't swap them itself
        return _narrow_product(f"{of_b},{of_a}->{of_c}", b, a)
    (summed,) = set(of_a) - set(of_c)

    def product(a: Array, b: Array) -> Array:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    def turned_round(a: Array, b: Array) -> Array:
        # Laid out so that what is summed over comes last: else XLA turns the product into one of float32 numbers, a
        # fourth as fast. The constraint is for XLA not to undo it.
        order = of_a.replace(summed, "") + summed
        a = with_layout_constraint(jnp.einsum(f"{of_a}->{order}", a), Layout(tuple(range(a.ndim))))
        return jnp.einsum(f"{order},{of_b}->{of_c}", a, b, preferred_element_type=jnp.float32)

    if of_a[-1] == summed:
        return product(a, b)
    return jax.lax.platform_dependent(a, b, cpu=turned_round, default=product)


def _indices(subscripts: str) -> tuple[str, str, str]:
    a, b, c = subscripts.replace("->", ",").split(",")
    return a, b, c


_narrow_einsum.defvjp(_narrow_forward, _narrow_backward)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Each element set to zero with probability `rate`, the others divided by 1 - rate; x itself without a key.

    Sixteen random bits decide an element, so the rate is met to within 1/65,536 and half as many are drawn.
    """
    if key is None or rate == 0:
        return x
    threshold = round(rate * 65_536)
    last = x.shape[-1]
    bits = jax.random.bits(key, (*x.shape[:-1], -(-last // 2)), jnp.uint32)
    # Two elements a word: low halves for the first half of the last axis, high halves for the second.
    halves = jnp.concatenate([bits & 0xFFFF, bits >> 16], axis=-1)[..., :last]
    return jnp.where(halves >= threshold, x * (65_536 / (65_536 - threshold)), 0).astype(x.dtype)


def sinusoids(positions_BT: Array, d_model: int) -> Array:
    """Sinusoidal position encodings (paper §3.5): sin at even, cos at odd dimensions; float32 of shape BTD.

    PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same angle).
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions_BT.shape, d_model)


class Embedding(nnx.Module):
    """One table of V rows: looked up at the input (`embed`), multiplied with at the output (`logits`); paper §3.4."""

    def __init__(self, vocab_size: int, d_model: int, *, rngs: nnx.Rngs):
        # Standard deviation D^-0.5: unit variance after the scaling by sqrt(D), and small initial logits.
        self.table = normal(d_model**-0.5, rngs, (vocab_size, d_model))

    @jax.named_scope("embed")
    def embed(self, tokens_BT: Array) -> Array:
        """Rows of the table times sqrt(D), float32: x_BTD."""
        table_VD = self.table[...]
        # Other forms of a table (`Rounded`, the copies that training has) know how to look up themselves.
        rows_BTD = table_VD.lookup(tokens_BT) if hasattr(table_VD, "lookup") else table_VD[tokens_BT]
        return rows_BTD * table_VD.shape[1] ** 0.5

    @jax.named_scope("logits")
    def logits(self, x_BTD: Array) -> Array:
        """Unnormalised log-probabilities over the vocabulary, float32: logits_BTV."""
        B, T, D = x_BTD.shape
        return matmul(x_BTD.reshape(-1, D), self.table[...], jnp.float32, w_axis=1).reshape(B, T, -1)


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it (Ba et al. 2016)."""

    def __init__(self, d_model: int):
        self.scale = constant(1, d_model)
        self.bias = constant(0, d_model)

    @jax.named_scope("norm")
    def __call__(self, x_BTD: Array) -> Array:
        x = x_BTD.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + 1e-6) * self.scale[...] + self.bias[...]
        return y.astype(x_BTD.dtype)


class FeedForward(nnx.Module):
    """max(0, x W1 + b1) W2 + b2 (paper §3.3, eq. 2)."""

    def __init__(self, d_model: int, d_ff: int, *, start: Matrices, rngs: nnx.Rngs):
        self.w1 = matrix(start["w1"], rngs, (d_model, d_ff))
        self.b1 = constant(0, d_ff)
        self.w2 = matrix(start["w2"], rngs, (d_ff, d_model))
        self.b2 = constant(0, d_model)

    @jax.named_scope("feed_forward")
    def __call__(self, x_BTD: Array) -> Array:
        # Biases are added in float32, and their gradients summed in it, before anything is rounded.
        h_BTF = product(x_BTD, self.w1[...], dtype=jnp.float32) + self.b1[...]
        y_BTD = product(jax.nn.relu(h_BTF).astype(x_BTD.dtype), self.w2[...], dtype=jnp.float32) + self.b2[...]
        return y_BTD.astype(x_BTD.dtype)
