"""Initial values of all parameters. `ModelConfig.initializer` chooses the distributions of the matrices.

The paper does not give its initialisation. In its post-norm layers, LayerNorm(x + f(x)), each norm shrinks x, and
shrinks it more the larger f(x) is compared with x. With Glorot and Bengio's rule the variance of f(x) is at least a
third of that of x. Attention then averages the positions of a sentence until they look alike: in RESULTS.md the cosine
between two positions is 0.89 after an encoder of 4 layers and 0.999 after 12 layers. Cross-attention then cannot
distinguish the positions, and the model learns it late or never. So the default, 'scaled', starts with small
sub-layers: as in GPT-2 (Radford et al. 2019, section 2.3), the last matrix of each sub-layer is divided by the square
root of the number of sub-layers. Then all f(x) of a stack together have less variance than x, at any depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ..config import ModelConfig


class Uniform(NamedTuple):
    """Uniform distribution around 0 with variance scale / fan."""

    scale: float
    fan: Literal["in", "average"] = "in"
    """'in' = the number of rows of the matrix, which a product sums over; 'average' = the mean of the numbers of rows
    and columns (Glorot and Bengio 2010)."""

    def limit(self, fan_in: int, fan_out: int) -> float:
        """The bound of the distribution for a matrix of `fan_in` rows and `fan_out` columns."""
        return (3 * self.scale / (fan_in if self.fan == "in" else (fan_in + fan_out) / 2)) ** 0.5


class Normal(NamedTuple):
    """Normal distribution around 0."""

    deviation: float
    truncated: bool = False
    """Redraw values more than two deviations from 0, as TensorFlow does. The variance becomes 0.774 * deviation^2."""


Distribution = Uniform | Normal
Distributions = Mapping[str, Distribution]

NAMES = ("query", "key", "value", "output", "w1", "w2")
GLOROT: Distributions = dict.fromkeys(NAMES, Uniform(1, "average"))
FAIRSEQ: Distributions = {
    **dict.fromkeys(("query", "key", "value"), Uniform(1 / 2, "average")),
    "output": Uniform(1, "average"),
    **dict.fromkeys(("w1", "w2"), Uniform(1 / 3)),
}


def scaled(sublayers: int) -> Distributions:
    """Distributions that keep the variance of a matrix's input. The last matrix of each sub-layer divides it by the
    number of sub-layers of the stack."""
    keep, last = Uniform(1), Uniform(1 / sublayers)
    return {**dict.fromkeys(("query", "key", "value", "w1"), keep), "output": last, "w2": last}


def gpt2(sublayers: int) -> Distributions:
    """GPT-2's distributions: deviation 0.02, in the last matrix of each sub-layer divided by sqrt(`sublayers`)."""
    last = Normal(0.02 / sublayers**0.5)
    return {**dict.fromkeys(NAMES, Normal(0.02)), "output": last, "w2": last}


BERT: Distributions = dict.fromkeys(NAMES, Normal(0.02, truncated=True))


def distributions(initializer: str, sublayers: int) -> Distributions:
    """Map each matrix's name to its initial distribution, in a stack with this number of sub-layers."""
    ways = {"glorot": GLOROT, "fairseq": FAIRSEQ, "scaled": scaled(sublayers), "gpt2": gpt2(sublayers), "bert": BERT}
    return ways[initializer]


def matrix(start: Distribution, rngs: nnx.Rngs, shape: tuple[int, ...], inner: int = 1) -> nnx.Param:
    """A float32 matrix of this shape, with initial values. Its first `inner` axes are the rows (fan-in)."""
    if isinstance(start, Normal):
        return normal(start, rngs, shape)
    limit = start.limit(math.prod(shape[:inner]), math.prod(shape[inner:]))
    values = jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit)
    return nnx.Param(values, start=f"uniform, +-{limit:.4f}")


def table(config: ModelConfig, rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    """A float32 table of normally distributed values. The initializers 'gpt2' and 'bert' override `deviation`."""
    ways = {"gpt2": Normal(0.02), "bert": Normal(0.02, truncated=True)}
    return normal(ways.get(config.initializer, Normal(deviation)), rngs, shape)


def normal(start: Normal, rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """A float32 parameter of this shape with normally distributed values."""
    key, deviation = rngs.params(), start.deviation
    if start.truncated:
        values = jax.random.truncated_normal(key, -2, 2, shape, jnp.float32)
    else:
        values = jax.random.normal(key, shape, jnp.float32)
    return nnx.Param(values * deviation, start=f"{'truncated ' * start.truncated}normal, {deviation:.4f}")


def constant(value: Literal[0, 1], shape: int | tuple[int, ...]) -> nnx.Param:
    """A float32 parameter of this shape, filled with zeros or ones."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), start=str(value))
