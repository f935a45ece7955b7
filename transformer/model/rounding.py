"""Low-precision parameters for decoding: bfloat16, or int8 quantisation with scales.

Shapes: X rows, D inputs, E outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..config import ModelConfig

KEPT = ("entropy",)
"""Parts that stay in float32. Where patches begin hangs on the last bits of entropies."""

# Number of leading axes of each matrix that a product sums over; 0 = an embedding table, whose rows are outputs.
INNER = {"query": 1, "key": 1, "value": 1, "output": 2, "w1": 1, "w2": 1, "w": 1, "table": 0}


@partial(jax.tree_util.register_dataclass, data_fields=["rows_ED", "scale_E"], meta_fields=["shape"])
@dataclass(frozen=True)
class Rounded:
    """A matrix in bfloat16, or in int8 with a scale per output.

    Stored with outputs first, so that the weights of one output are contiguous. On a CPU this layout is the fastest
    for products with few rows of input.
    """

    rows_ED: Array
    scale_E: Array | None
    """None in bfloat16."""
    shape: tuple[int, ...]
    """Shape of the original parameter."""

    def __getitem__(self, everything: Any) -> Rounded:
        return self  # supports `[...]`, like an array

    def lookup(self, index: Array) -> Array:
        """Rows of an embedding table, float32."""
        rows = self.rows_ED[index].astype(jnp.float32)
        return rows if self.scale_E is None else rows * self.scale_E[index][..., None]


def rounded(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The parameters with matrices and embedding tables in `dtype`: 'bfloat16', 'int8', or 'float32' (unchanged).

    `Model.apply` and `bind` accept them like the original ones. Vectors and learned positions stay float32.
    """
    if dtype == "float32":
        return dict(params)
    return {
        name: node
        if name in KEPT
        else rounded(node, dtype)
        if isinstance(node, Mapping)
        else _rounded(node, dtype, INNER[name])
        if name in INNER
        else node
        for name, node in params.items()
    }


def in_type(model: ModelConfig, params: Mapping[str, Any], dtype: str) -> tuple[ModelConfig, Mapping[str, Any]]:
    """Model config and parameters for decoding with `decode.dtype` = `dtype`."""
    fast = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype == "auto":
        dtype = model.dtype if fast == "float32" else fast
    # int8 applies to matrices and their inputs only.
    return replace(model, dtype=fast if dtype == "int8" else dtype), rounded(params, dtype)


def _rounded(w: Array, dtype: str, inner: int) -> Rounded:
    rows_ED = w.reshape(math.prod(w.shape[:inner]), -1).T if inner else w
    if dtype == "bfloat16":
        return Rounded(rows_ED.astype(dtype), None, w.shape)
    rows_ED, scale_E1 = _integers(rows_ED)
    return Rounded(rows_ED, scale_E1[:, 0], w.shape)


def rounded_product(x_XD: Array, w: Rounded) -> Array:
    """x times a low-precision matrix: float32 of shape XE.

    bfloat16: x is rounded, too, and sums are float32. int8: each row of x is quantised with its own scale, from its
    largest element, and the integer sums are exact (vector-wise quantisation, Dettmers et al. 2022, §3.1).
    """

    def sums(x_XD: Array, dtype: Any) -> Array:
        return jax.lax.dot_general(x_XD, w.rows_ED, (((1,), (1,)), ((), ())), preferred_element_type=dtype)

    if w.scale_E is None:
        return sums(x_XD.astype(w.rows_ED.dtype), jnp.float32)
    x_XD, scale_X1 = _integers(x_XD)
    return sums(x_XD, jnp.int32).astype(jnp.float32) * scale_X1 * w.scale_E


def _integers(x_XD: Array) -> tuple[Array, Array]:
    """Quantise each row of x to integers from -127 to 127. Returns (integers, scales): x is about their product."""
    x_XD = x_XD.astype(jnp.float32)
    scale_X1 = jnp.max(jnp.abs(x_XD), axis=1, keepdims=True) / 127
    return jnp.round(x_XD / jnp.where(scale_X1 == 0, 1, scale_X1)).astype(jnp.int8), scale_X1
