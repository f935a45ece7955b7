"""Mistakes in calls from Python, told in one line instead of a wrong result.

Types and shapes are always checked. Values are checked where they are known: inside `jax.jit` arrays have none yet, so
there nothing is checked and nothing costs time. Otherwise XLA takes an id beyond the vocabulary as the last one, a
negative one as counted from the end, and a position beyond the learned ones as the last of these.

Shapes: B sentences, T positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import BOS, PAD, ModelConfig, UserError, check_model


def value_of(x: Any) -> np.ndarray | None:
    """The values of an array or number; None where they are traced, as in `jax.jit`, or lie in other processes."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


def whole(name: str, number: Any, least: int, most: int | None = None) -> None:
    """Raise `UserError` unless this is an integer, of Python or NumPy, from `least` to `most`."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        raise UserError(f"{name} = {number!r}: must be an integer")
    if number < least or (most is not None and number > most):
        raise UserError(f"{name} = {number}: must be at least {least}{'' if most is None else f', at most {most}'}")


def check_whole(config: ModelConfig) -> None:
    """Raise `UserError` where no model can be built: a rule of `ModelConfig` is broken, or it has no vocabulary."""
    check_model(config)
    if config.vocab_size is None:
        raise UserError("model.vocab_size = None: give the size of the vocabulary")


def check_integers(name: str, x_BT: Any) -> None:
    """Raise `UserError` unless this is an array of integers of shape (rows, positions), with one of each at least."""
    if not hasattr(x_BT, "shape") or not hasattr(x_BT, "dtype"):
        raise UserError(f"{name} is a {type(x_BT).__name__}: give an array of integers, such as jnp.array({name})")
    if not jnp.issubdtype(x_BT.dtype, jnp.integer):
        raise UserError(f"{name} is of type {x_BT.dtype}: give integers")
    if x_BT.ndim != 2:
        raise UserError(f"{name} has the shape {x_BT.shape}: give (rows, positions), so {name}[None] for one sentence")
    if 0 in x_BT.shape:
        raise UserError(f"{name} has the shape {x_BT.shape}: give one row and one position at least")


def check_ids(name: str, ids_BT: Any, vocab_size: int) -> None:
    """Raise `UserError` unless these are ids of pieces, of shape (rows, positions)."""
    check_integers(name, ids_BT)
    ids = value_of(ids_BT)
    if ids is not None and not (ids.min() >= 0 and ids.max() < vocab_size):
        row, place = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
        raise UserError(
            f"{name}[{row}, {place}] = {ids[row, place]}: ids must be 0 or more and below vocab_size, {vocab_size}"
        )


def check_like(name: str, x_BT: Any, ids_BT: Any) -> None:
    """Raise `UserError` unless this array of integers gives one for each id; one row may stand for all."""
    check_integers(name, x_BT)
    if x_BT.shape[1] != ids_BT.shape[1] or x_BT.shape[0] not in (1, ids_BT.shape[0]):
        raise UserError(f"{name} has the shape {x_BT.shape}, and the ids it belongs to {ids_BT.shape}: give the same")


def check_pair(name: str, pair: Any) -> tuple[Any, Any]:
    """The two sides of what is given for source and target together; None for both where nothing is given."""
    if pair is None:
        return None, None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UserError(f"{name} must be two arrays, that of the source and that of the target")
    return pair[0], pair[1]


def check_places(name: str, ids_BT: Any, positions_BT: Any, rows: int) -> None:
    """Raise `UserError` where a piece stands at a position that a learned table of so many rows does not have."""
    ids, places = value_of(ids_BT), value_of(positions_BT)
    if ids is None or places is None:
        return
    wrong = np.broadcast_to((places < 0) | (places >= rows), ids.shape) & (ids != PAD)
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise UserError(
            f"{name}[{row}, {place}] stands at position {np.broadcast_to(places, ids.shape)[row, place]}, counted from "
            f"0: this model has learned {rows} positions (max_positions); give shorter sentences"
        )


def check_sources(mask_BS: Any, ids_BT: Any) -> None:
    """Raise `UserError` unless there are as many targets as sources, or M times as many, and each target of at least
    one piece has a source of at least one.

    Rows without pieces on both sides may fill up a batch. A bos alone is no piece: training puts it before each row.
    """
    sentences, rows = len(mask_BS), len(ids_BT)
    if rows % sentences:
        raise UserError(f"{rows} targets for {sentences} sources: give one for each, or M beams for each")
    mask, ids = value_of(mask_BS), value_of(ids_BT)
    if mask is None or ids is None:
        return
    wrong = np.repeat(~mask.any(axis=1), rows // sentences) & (ids > BOS).any(axis=1)
    if wrong.any():
        raise UserError(f"row {np.argmax(wrong)} has a target, but nothing but padding as its source; leave it out")
