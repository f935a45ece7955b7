"""How parameters start, all of it in one place; `ModelConfig.initializer` chooses the matrices.

The paper does not say how it initialises. Its post-norm layers, LayerNorm(x + f(x)), shrink x at each of their norms,
the more the larger f(x) is beside it. By Glorot and Bengio's rule the variance of f(x) is a third of that of x or more.
Attention then averages the positions of a sentence until they look alike: in RESULTS.md the cosine between two of them
is 0.89 behind an encoder of 4 layers and 0.999 behind 12. Cross-attention has nothing to choose from, and is learnt
late or never. So sub-layers start small: as in GPT-2 (Radford et al. 2019, section 2.3) the last matrix of each is
divided by the square root of their number. Then all f(x) of a stack together have less variance than x, at any depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.config import ModelConfig


class Uniform(NamedTuple):
    """Numbers drawn evenly around 0, with the variance scale / fan."""

    scale: float
    fan: Literal["in", "average"] = "in"
    """The rows of the matrix, which are summed over; or the mean of rows and columns (Glorot and Bengio 2010)."""

    def limit(self, fan_in: int, fan_out: int) -> float:
        """The largest number for a matrix of `fan_in` rows and `fan_out` columns."""
        return (3 * self.scale / (fan_in if self.fan == "in" else (fan_in + fan_out) / 2)) ** 0.5


class Normal(NamedTuple):
    """Numbers drawn from a normal distribution around 0."""

    deviation: float
    truncated: bool = False
    """Drawn again where they are more than two deviations from 0, as TensorFlow does: the variance is 0.774 of that."""


Start = Uniform | Normal
Matrices = Mapping[str, Start]

NAMES = ("query", "key", "value", "output", "w1", "w2")
GLOROT: Matrices = dict.fromkeys(NAMES, Uniform(1, "average"))
FAIRSEQ: Matrices = {
    **dict.fromkeys(("query", "key", "value"), Uniform(1 / 2, "average")),
    "output": Uniform(1, "average"),
    **dict.fromkeys(("w1", "w2"), Uniform(1 / 3)),
}


def scaled(sublayers: int) -> Matrices:
    """Matrices that keep the variance of what they multiply; the last one of each of a stack's `sublayers` divides it
    by their number."""
    keep, last = Uniform(1), Uniform(1 / sublayers)
    return {**dict.fromkeys(("query", "key", "value", "w1"), keep), "output": last, "w2": last}


def gpt2(sublayers: int) -> Matrices:
    """GPT-2's: 0.02, and the last matrix of each sub-layer divided by the square root of their number."""
    last = Normal(0.02 / sublayers**0.5)
    return {**dict.fromkeys(NAMES, Normal(0.02)), "output": last, "w2": last}


BERT: Matrices = dict.fromkeys(NAMES, Normal(0.02, truncated=True))


def matrices(initializer: str, sublayers: int) -> Matrices:
    """How the matrices of a stack with so many sub-layers start, by their names."""
    ways = {"glorot": GLOROT, "fairseq": FAIRSEQ, "scaled": scaled(sublayers), "gpt2": gpt2(sublayers), "bert": BERT}
    return ways[initializer]


def matrix(start: Start, rngs: nnx.Rngs, shape: tuple[int, ...], inner: int = 1) -> nnx.Param:
    """A float32 matrix of this shape; its first `inner` axes are the rows."""
    if isinstance(start, Normal):
        return normal(start, rngs, shape)
    limit = start.limit(math.prod(shape[:inner]), math.prod(shape[inner:]))
    values = jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit)
    return nnx.Param(values, start=f"uniform, +-{limit:.4f}")


def table(config: ModelConfig, rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    """A float32 table, drawn with this standard deviation, or as GPT-2 and BERT draw theirs."""
    ways = {"gpt2": Normal(0.02), "bert": Normal(0.02, truncated=True)}
    return normal(ways.get(config.initializer, Normal(deviation)), rngs, shape)


def normal(start: Normal, rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Float32 numbers of this shape, drawn around 0."""
    key, deviation = rngs.params(), start.deviation
    values = jax.random.truncated_normal(key, -2, 2, shape) if start.truncated else jax.random.normal(key, shape)
    return nnx.Param(values * deviation, start=f"{'truncated ' * start.truncated}normal, {deviation:.4f}")


def constant(value: Literal[0, 1], shape: int | tuple[int, ...]) -> nnx.Param:
    """Float32 zeros or ones of this shape."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), start=str(value))
