"""Parameters for decoding in fewer bits: bfloat16, or 8-bit integers with scales.

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

from transformer.config import ModelConfig

# How many of its first axes a matrix of this name is summed over; 0 = a table, whose rows are outputs (or looked up).
INNER = {"query": 1, "key": 1, "value": 1, "output": 2, "w1": 1, "w2": 1, "table": 0}


@partial(jax.tree_util.register_dataclass, data_fields=["rows_ED", "scale_E"], meta_fields=["shape"])
@dataclass(frozen=True)
class Rounded:
    """A matrix in 16 bits, or in 8 with a scale for each output.

    It lies with its outputs first, each beside its weights, as few rows of input are multiplied fastest on a CPU.
    """

    rows_ED: Array
    scale_E: Array | None
    """None in 16 bits."""
    shape: tuple[int, ...]
    """That of the parameter it stands for."""

    def __getitem__(self, everything: Any) -> Rounded:
        return self  # as an array's `[...]`

    def lookup(self, index: Array) -> Array:
        """Rows of a table, float32."""
        rows = self.rows_ED[index].astype(jnp.float32)
        return rows if self.scale_E is None else rows * self.scale_E[index][..., None]


def rounded(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The parameters with their matrices and tables in 'bfloat16' or 'int8', to be applied like the original ones.

    Vectors stay float32, as do learned positions. With 'float32' nothing changes.
    """
    if dtype == "float32":
        return dict(params)
    return {
        name: rounded(node, dtype)
        if isinstance(node, Mapping)
        else _rounded(node, dtype, INNER[name])
        if name in INNER
        else node
        for name, node in params.items()
    }


def in_type(model: ModelConfig, params: Mapping[str, Any], dtype: str) -> tuple[ModelConfig, Mapping[str, Any]]:
    """A trained model for decoding in a type that `decode.dtype` names."""
    fast = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype == "auto":
        dtype = model.dtype if fast == "float32" else fast
    # In 8 bits are the matrices alone, and what is multiplied with them.
    return replace(model, dtype=fast if dtype == "int8" else dtype), rounded(params, dtype)


def _rounded(w: Array, dtype: str, inner: int) -> Rounded:
    rows_ED = w.reshape(math.prod(w.shape[:inner]), -1).T if inner else w
    if dtype == "bfloat16":
        return Rounded(rows_ED.astype(dtype), None, w.shape)
    rows_ED, scale_E1 = _integers(rows_ED)
    return Rounded(rows_ED, scale_E1[:, 0], w.shape)


def rounded_product(x_XD: Array, w: Rounded) -> Array:
    """x times a rounded matrix, float32.

    In 16 bits x is rounded, too, and sums are float32. In 8 bits each row of x gets a scale of its own, by its largest
    element, and sums are exact (vector-wise quantisation, Dettmers et al. 2022, §3.1).
    """

    def sums(x_XD: Array, dtype: Any) -> Array:
        return jax.lax.dot_general(x_XD, w.rows_ED, (((1,), (1,)), ((), ())), preferred_element_type=dtype)

    if w.scale_E is None:
        return sums(x_XD.astype(w.rows_ED.dtype), jnp.float32)
    x_XD, scale_X1 = _integers(x_XD)
    return sums(x_XD, jnp.int32).astype(jnp.float32) * scale_X1 * w.scale_E


def _integers(x_XD: Array) -> tuple[Array, Array]:
    """x as integers of -127 to 127, and what each row of them is to be multiplied with."""
    x_XD = x_XD.astype(jnp.float32)
    scale_X1 = jnp.max(jnp.abs(x_XD), axis=1, keepdims=True) / 127
    return jnp.round(x_XD / jnp.where(scale_X1 == 0, 1, scale_X1)).astype(jnp.int8), scale_X1
