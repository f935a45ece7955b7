"""Layers other than attention: embedding, feed-forward, layer norm and dropout.

Parameters are float32. Matrix products run in the type of their input, norms in float32.
Shapes: B batch, T length, D model, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ..config import ModelConfig
from .initializers import Distributions, constant, distributions, matrix, table
from .products import lookup, matmul, product


def gelu(x: Array) -> Array:
    """x times the share of a normal distribution that lies below x (Hendrycks and Gimpel 2016), as PyTorch computes it.

    JAX's own takes erfc, which costs twice as much on CPUs. The results differ by 5e-7.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "swish": jax.nn.swish,
}


def fold(key: Array | None, i: int) -> Array | None:
    """Derive the i-th key from `key`. None means no dropout and stays None."""
    return None if key is None else jax.random.fold_in(key, i)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Set each element to zero with probability `rate`, and divide the others by 1 - rate. Without a key: return x.

    Each element takes 16 random bits; the rate is exact to within 1/65,536. x has two axes at least.
    """
    if key is None or rate == 0:
        return x
    threshold = round(rate * 65_536)
    *outer, rows, last = x.shape
    words = random_words(key, (*outer, -(-rows // 4), last))  # each for four rows
    halves = (half for word in words for half in (word & 0xFFFF, word >> 16))
    kept = jnp.concatenate([half >= threshold for half in halves], axis=-2)[..., :rows, :]
    return jnp.where(kept, x * (65_536 / (65_536 - threshold)), 0).astype(x.dtype)


ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""By how many bits Threefry turns a word in its rounds."""


def random_words(key: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Two arrays of this shape of random numbers, uint32, a pure function of the key and of each element's position.

    Threefry-2x32 with 20 rounds (Salmon et al. 2011), as in `jax.random`, which makes half as many numbers of the same
    work and takes its rounds in a loop on CPUs, through memory.
    """
    first, second = jax.random.key_data(key)[:2]
    keys = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    *rows, last = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape)))
    row = jnp.uint32(0)
    for size, position in zip(shape, rows, strict=False):
        row = row * size + position
    x, y = row + keys[0], last + keys[1]
    for i in range(1, 6):
        for bits in ROTATIONS[(i - 1) % 2]:
            x = x + y
            y = x ^ (y << bits | y >> (32 - bits))
        x, y = x + keys[i % 3], y + keys[(i + 1) % 3] + np.uint32(i)
    return x, y


class Embedding(nnx.Module):
    """Embedding table of shape VD (paper §3.4): `embed` looks up its rows at the input, `logits` multiplies by it."""

    def __init__(self, config: ModelConfig, size: int | None = None, *, rngs: nnx.Rngs):
        """`size`: number of rows; None = config.vocab_size."""
        # Standard deviation D^-0.5 gives unit variance after the scaling by sqrt(D), and small initial logits.
        shape = (size or config.vocab_size, config.d_model)
        self.table = table(config, rngs, shape, deviation=config.d_model**-0.5)
        self.scale = config.d_model**0.5 if config.embedding_scale else 1.0

    @jax.named_scope("embed")
    def embed(self, tokens_BT: Array) -> Array:
        """Rows of the table, times sqrt(D) if `embedding_scale`; float32: x_BTD."""
        # As int32: JAX adds the size of the table to an index, which may be too large for a narrow type.
        return lookup(self.table[...], jnp.asarray(tokens_BT, jnp.int32)) * self.scale

    @jax.named_scope("logits")
    def logits(self, x_BTD: Array) -> Array:
        """Product of x and the transposed table, without bias; float32: logits_BTV."""
        B, T, D = x_BTD.shape
        return matmul(x_BTD.reshape(-1, D), self.table[...], jnp.float32, w_axis=1).reshape(B, T, -1)


class Dense(nnx.Module):
    """x W + b, float32, with as many outputs as `outputs`."""

    def __init__(self, config: ModelConfig, outputs: int, *, rngs: nnx.Rngs):
        self.w = matrix(distributions(config.initializer, 1)["w1"], rngs, (config.d_model, outputs))
        self.bias = constant(0, outputs)

    def __call__(self, x: Array) -> Array:
        return product(x, self.w[...], dtype=jnp.float32) + self.bias[...]


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016): normalise the last axis to mean 0 and variance 1, then scale and shift.

    Without `norm_bias` there is no shift.
    """

    def __init__(self, config: ModelConfig):
        self.scale = constant(1, config.d_model)
        self.bias = constant(0, config.d_model) if config.norm_bias else None
        self.eps = config.norm_eps

    @jax.named_scope("norm")
    def __call__(self, x_BTD: Array) -> Array:
        x = x_BTD.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x_BTD.dtype)


class FeedForward(nnx.Module):
    """Position-wise feed-forward network f(x W1 + b1) W2 + b2 (paper §3.3, eq. 2); in the paper f(x) = max(0, x)."""

    def __init__(self, config: ModelConfig, *, start: Distributions, rngs: nnx.Rngs):
        D, F = config.d_model, config.d_ff
        self.w1 = matrix(start["w1"], rngs, (D, F))
        self.b1 = constant(0, F)
        self.w2 = matrix(start["w2"], rngs, (F, D))
        self.b2 = constant(0, D)
        self.activation, self.rate = ACTIVATIONS[config.activation], config.activation_dropout

    @jax.named_scope("feed_forward")
    def __call__(self, x_BTD: Array, key: Array | None = None) -> Array:
        """Return y_BTD. A `key` switches dropout of the activations on."""
        # Add biases in float32, before rounding. Then their gradients are summed in float32, too.
        h_BTF = product(x_BTD, self.w1[...], dtype=jnp.float32) + self.b1[...]
        h_BTF = dropout(self.activation(h_BTF).astype(x_BTD.dtype), self.rate, key)
        y_BTD = product(h_BTF, self.w2[...], dtype=jnp.float32) + self.b2[...]
        return y_BTD.astype(x_BTD.dtype)
