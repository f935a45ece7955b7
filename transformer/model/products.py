"""Matrix products in the type of their input, with sums in float32, in the form that is fastest on each device.

Shapes: X rows, D inputs, E outputs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

from .rounding import Rounded, rounded_product


@runtime_checkable
class Table(Protocol):
    """A table that is not a plain array: in lower precision, or replicated on several devices."""

    shape: tuple[int, ...]

    def lookup(self, index_BT: Array) -> Array:
        """Rows of the table: x_BTD."""


def lookup(table_VD: Array | Table, index_BT: Array) -> Array:
    """Rows of a table: x_BTD, in the table's type."""
    return table_VD.lookup(index_BT) if isinstance(table_VD, Table) else table_VD[index_BT]


def product(x: Array, w: Any, axes: int = 1, dtype: jnp.dtype | None = None) -> Array:
    """x times w, contracted over the last `axes` dimensions of x and the first `axes` dimensions of w.

    Multiplies in x's type. The result has type `dtype`, by default x's type. The product is computed as one
    two-dimensional product: XLA on CPU is up to a fifth faster then, since no gradient needs a transposition.
    """
    batch, inner, outer = x.shape[:-axes], w.shape[:axes], w.shape[axes:]
    size = math.prod(inner)
    w_DE = w if isinstance(w, Rounded) else w.reshape(size, -1)
    return matmul(x.reshape(-1, size), w_DE, dtype or x.dtype).reshape(*batch, *outer)


def matmul(x_XD: Array, w: Any, dtype: jnp.dtype, w_axis: int = 0) -> Array:
    """x w, computed as in `einsum` and cast to `dtype`. `w_axis`: the axis of w to sum over; 1 gives x w^T."""
    if isinstance(w, Rounded):  # its rows are outputs for either `w_axis`
        return rounded_product(x_XD, w).astype(dtype)
    return einsum("XD,ED->XE" if w_axis else "XD,DE->XE", x_XD, w).astype(dtype)


def einsum(subscripts: str, a: Array, b: Array) -> Array:
    """einsum of two arrays that multiplies in a's type, and sums and returns in float32.

    Each index must occur in at least two of the three arrays (a, b, result), and exactly one index is summed over.
    b may have a wider type than a; its gradient is then not rounded to a's type.
    """
    if a.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    return _narrow_einsum(subscripts, a, b)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_einsum(subscripts: str, a: Array, b: Array) -> Array:
    # Why a custom gradient: a product of 16-bit arrays with a float32 result has, in JAX, a gradient that multiplies
    # float32 by 16-bit numbers, which no matrix unit supports. Here the product and both gradients multiply 16-bit
    # numbers and sum in float32. XLA on CPU uses AMX only for this form: a 16-bit result takes four to eight times as
    # long.
    return _narrow_product(subscripts, a, b.astype(a.dtype))


def _narrow_forward(subscripts: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_einsum(subscripts, a, b), (a, b)


def _narrow_backward(subscripts: str, kept: tuple[Array, Array], dc: Array) -> tuple[Array, Array]:
    a, b = kept
    of_a, of_b, of_c = _indices(subscripts)
    dc = dc.astype(a.dtype)
    da = _narrow_product(f"{of_c},{of_b}->{of_a}", dc, b.astype(a.dtype))
    db = _narrow_product(f"{of_a},{of_c}->{of_b}", a, dc)
    return _summed_as(da, a).astype(a.dtype), _summed_as(db, b).astype(b.dtype)


def _summed_as(gradient: Array, x: Array) -> Array:
    """The gradient of x. In `jax.shard_map`, sums over the mesh axes along which only the gradient varies."""
    axes = _varying(gradient) - _varying(x)
    return jax.lax.psum(gradient, tuple(axes)) if axes else gradient


def _varying(x: Array) -> frozenset[str]:
    """In `jax.shard_map`, the mesh axes along which x varies. Versions of JAX name this attribute differently."""
    aval = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return getattr(aval, "vma", frozenset()) if kind is None else kind.varying


def _narrow_product(subscripts: str, a: Array, b: Array) -> Array:
    of_a, of_b, of_c = _indices(subscripts)
    if of_c[-1] in of_a:  # swap a and b here, else einsum does so itself
        return _narrow_product(f"{of_b},{of_a}->{of_c}", b, a)
    (summed,) = set(of_a) - set(of_c)

    def product(a: Array, b: Array) -> Array:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    def transposed_first(a: Array, b: Array) -> Array:
        # Transpose a so that the summed index is last. Otherwise XLA computes the product in float32, at a fourth of
        # the speed. The layout constraint keeps XLA from undoing the transposition.
        order = of_a.replace(summed, "") + summed
        a = with_layout_constraint(jnp.einsum(f"{of_a}->{order}", a), Layout(tuple(range(a.ndim))))
        return jnp.einsum(f"{order},{of_b}->{of_c}", a, b, preferred_element_type=jnp.float32)

    if of_a[-1] == summed:
        return product(a, b)
    return jax.lax.platform_dependent(a, b, cpu=transposed_first, default=product)


def _indices(subscripts: str) -> tuple[str, str, str]:
    a, b, c = subscripts.replace("->", ",").split(",")
    return a, b, c


_narrow_einsum.defvjp(_narrow_forward, _narrow_backward)
