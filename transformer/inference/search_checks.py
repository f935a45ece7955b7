"""Checks of what callers give to `beam_search`: options, arrays and functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import UserError, shown
from transformer.model.cache import Cache
from transformer.model.checks import INT32_MAX, check_array, check_integer, value_of


def check_arrays(name: str, tree: Any) -> None:
    """Raise `UserError` unless this is a tree of arrays."""
    try:
        jax.eval_shape(lambda tree: tree, tree)
    except (TypeError, OverflowError):
        raise UserError(f"{name} holds something else than arrays: give a tree of arrays") from None


def check_capacity(cache: Any, max_length: int) -> None:
    """Raise `UserError` if a KV cache of our models has no room for outputs of this length."""
    for part in jax.tree.leaves(cache, is_leaf=lambda part: isinstance(part, Cache)):
        if isinstance(part, Cache):
            (_, M, S), end = part.seen_BMS.shape, value_of(part.end)
            used = 0 if end is None else int(end) // M
            if used + max_length > S // M:
                raise UserError(
                    f"the cache has room for {S // M} positions"
                    + (f" and holds {used} already" if used else "")
                    + f": give init_cache(length={used + max_length}), or a max_length of at most {S // M - used}"
                )


def check_function(name: str, function: Any) -> None:
    """Raise `UserError` unless this can be called."""
    if not callable(function):
        raise UserError(f"{name} = {shown(function)}: give a function")


def check_options(
    limit_B: Any,
    max_length: int,
    beam_size: int,
    special: tuple[int, int, int],
    length_penalty: Any,
    n_best: int,
) -> None:
    """Raise `UserError` naming the first invalid option of `beam_search`."""
    check_integer("max_length", max_length, 1, INT32_MAX)
    check_integer("beam_size", beam_size, 1, INT32_MAX)
    check_integer("n_best", n_best, 1, beam_size)
    for name, piece in zip(("bos", "eos", "pad"), special, strict=True):
        check_integer(name, piece, 0, INT32_MAX)
    alpha = None if (several := isinstance(length_penalty, (list, tuple))) else value_of(length_penalty)
    if (
        several
        or np.ndim(length_penalty)
        or (alpha is not None and not (alpha.dtype.kind in "iuf" and 0 <= alpha < jnp.inf))
    ):
        raise UserError(f"length_penalty = {shown(length_penalty)}: must be a finite number, 0 or more")
    if hasattr(limit_B, "dtype"):
        check_array("limit_B", limit_B)
    if (
        not hasattr(limit_B, "dtype")
        or not jnp.issubdtype(limit_B.dtype, jnp.integer)
        or limit_B.ndim != 1
        or not limit_B.size
    ):
        raise UserError("limit_B must be an array of integers, the most pieces of each sentence")
    if (limits := value_of(limit_B)) is not None and limits.size and limits.max() > max_length:
        raise UserError(f"limit_B has {limits.max()}: must be at most max_length, {max_length}")


def checked_choice(given: Any, rows: int, beams: int) -> tuple[Array, Array, Array]:
    """Return the continuations that `choose` gives as three arrays (B, C).

    Raises `UserError` if they have other shapes, if C is below `beams`, or if parents or pieces are no integers.
    """
    fix = "choose must give three arrays: log-probabilities, parents and pieces"
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise UserError(fix)
    try:
        best_BC, parents_BC, pieces_BC = map(jnp.asarray, given)
    except (TypeError, ValueError, OverflowError):
        raise UserError(fix) from None
    shapes = [x.shape for x in (best_BC, parents_BC, pieces_BC)]
    if len({*shapes}) > 1 or len(shapes[0]) != 2 or shapes[0][0] != rows or shapes[0][1] < beams:
        raise UserError(f"{fix}, each ({rows}, {beams} or more); they are {', '.join(map(str, shapes))}")
    if not all(jnp.issubdtype(x.dtype, jnp.integer) for x in (parents_BC, pieces_BC)):
        raise UserError(f"{fix}; parents and pieces are integers, not {parents_BC.dtype} and {pieces_BC.dtype}")
    return best_BC, parents_BC, pieces_BC
