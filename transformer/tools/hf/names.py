"""Convert between our parameters and another library's arrays by a table of names. Both directions are strict."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer.config import UserError
from transformer.model import Params

Arrays = Mapping[str, np.ndarray]
Sizes = Mapping[str, int]
"""The size of each axis, by its letter."""


class Row(NamedTuple):
    """One parameter: its name and axes in our model and in theirs.

    Axes: D model, N heads, H head size, F feed-forward, V vocabulary, P learned positions, R token types, and E, S, L
    the outputs of the heads of an encoder. In their arrays N and H are one axis, written "NH", and "1" is an axis of
    size 1 that ours does not have.
    """

    ours: str
    theirs: str
    our_axes: str
    their_axes: str


def require_type(values: Mapping[str, Any], wanted: str, where: object) -> None:
    """Raise `UserError` unless a config.json, called `where`, is that of a model of the type `wanted`."""
    given = values.get("model_type")
    if given is None and "task" in values:  # as `transformer.config.to_json` writes it
        raise UserError(
            f"{where}: belongs to a model of this package: give --from safetensors, if export --to safetensors wrote "
            "the folder; a workdir needs no import"
        )
    if given != wanted:
        raise UserError(f"{where}: model_type = {given!r}: must be {wanted!r} for hf-{wanted}")


def flat(params: Params) -> dict[str, np.ndarray]:
    """Our nested parameters as a flat dict: path -> float32 array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in keys): np.asarray(leaf, np.float32) for keys, leaf in leaves}


def nested(arrays: Arrays) -> dict[str, Any]:
    """Nested parameters from a flat dict: the inverse of `flat`."""
    params: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, last = path.split("/")
        node = params
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = array
    return params


def our_shape(row: Row, sizes: Sizes) -> tuple[int, ...]:
    """The shape of our parameter."""
    return tuple(sizes[a] for a in row.our_axes)


def their_shape(row: Row, sizes: Sizes) -> tuple[int, ...]:
    """The shape of their array."""
    sizes = {**sizes, "1": 1}
    return tuple(math.prod(sizes[a] for a in axis) for axis in re.findall("NH|.", row.their_axes))


def to_theirs(array: np.ndarray, row: Row, sizes: Sizes, order: np.ndarray | None = None) -> np.ndarray:
    """Convert our parameter to their array. `order`: for each of their model dimensions the index of ours."""
    array = _permuted(array, row.our_axes, row.their_axes.replace("1", ""), order)
    return np.array(array.reshape(their_shape(row, sizes)), order="C")  # a copy: JAX's arrays are read-only


def to_ours(array: np.ndarray, row: Row, sizes: Sizes, order: np.ndarray | None = None) -> np.ndarray:
    """Convert their array to our parameter: the inverse of `to_theirs` with the same `order`."""
    axes = row.their_axes.replace("1", "")
    array = array.reshape([sizes[a] for a in axes])
    return np.array(_permuted(array, axes, row.our_axes, None if order is None else np.argsort(order)), order="C")


def _permuted(array: np.ndarray, axes: str, to: str, order: np.ndarray | None) -> np.ndarray:
    """`array` with its axes in the order `to`, and axis D permuted by `order`."""
    array = array.transpose([axes.index(a) for a in to])
    return array if order is None or "D" not in axes else array.take(order, axis=to.index("D"))


def mismatches(arrays: Arrays, expected: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
    """A message for each array that is missing, unknown, expected twice, or has the wrong shape."""
    shapes = dict(expected)
    wrong = [f"{name} is matched {n} times" for name, n in Counter(name for name, _ in expected).items() if n > 1]
    wrong += [f"missing {name}" for name in shapes if name not in arrays]
    wrong += [f"unknown {name}" for name in arrays if name not in shapes]
    return wrong + [
        f"{name} has shape {arrays[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]


def unusable(arrays: Arrays) -> list[str]:
    """A message for each array that is of a wrong type, or not finite."""
    wrong = []
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32):
            wrong.append(f"{name} is of type {array.dtype}, not float32")
        elif not np.isfinite(array).all():
            wrong.append(f"{name} holds numbers that are not finite")
    return wrong


def refuse(what: str, wrong: list[str]) -> None:
    """Raise `UserError` with all messages in `wrong`, if there are any. `what` names the model."""
    if wrong:
        raise UserError(f"{what}: {'; '.join(wrong)}")
