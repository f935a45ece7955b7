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


class Uniform(NamedTuple):
    """Numbers drawn evenly around 0, with the variance scale / fan."""

    scale: float
    fan: Literal["in", "average"] = "in"
    """The rows of the matrix, which are summed over; or the mean of rows and columns (Glorot and Bengio 2010)."""

    def limit(self, fan_in: int, fan_out: int) -> float:
        """The largest number for a matrix of `fan_in` rows and `fan_out` columns."""
        return (3 * self.scale / (fan_in if self.fan == "in" else (fan_in + fan_out) / 2)) ** 0.5


Matrices = Mapping[str, Uniform]

GLOROT: Matrices = dict.fromkeys(("query", "key", "value", "output", "w1", "w2"), Uniform(1, "average"))
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


def matrices(initializer: Literal["scaled", "glorot", "fairseq"], sublayers: int) -> Matrices:
    """How the matrices of a stack with so many sub-layers start, by their names."""
    return {"glorot": GLOROT, "fairseq": FAIRSEQ, "scaled": scaled(sublayers)}[initializer]


def matrix(start: Uniform, rngs: nnx.Rngs, shape: tuple[int, ...], inner: int = 1) -> nnx.Param:
    """A float32 matrix of this shape; its first `inner` axes are the rows."""
    limit = start.limit(math.prod(shape[:inner]), math.prod(shape[inner:]))
    values = jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit)
    return nnx.Param(values, start=f"uniform, +-{limit:.4f}")


def normal(deviation: float, rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """A float32 table of this shape, drawn with this standard deviation around 0."""
    values = jax.random.normal(rngs.params(), shape) * deviation
    return nnx.Param(values, start=f"normal, {deviation:.4f}")


def constant(value: Literal[0, 1], size: int) -> nnx.Param:
    """A float32 vector of zeros or ones."""
    return nnx.Param(jnp.full(size, value, jnp.float32), start=str(value))
