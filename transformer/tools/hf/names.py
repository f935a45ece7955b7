"""A table of names between our parameters and another library's arrays, applied both ways, and strict both ways."""

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
    """One parameter: D model, N heads, H head size, F feed-forward, V vocabulary; theirs has N and H as one axis, and
    may have axes of size 1, written "1", that ours has not."""

    ours: str
    theirs: str
    our_axes: str
    their_axes: str


def flat(params: Params) -> dict[str, np.ndarray]:
    """Our nested parameters in float32, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in keys): np.asarray(leaf, np.float32) for keys, leaf in leaves}


def nested(arrays: Arrays) -> dict[str, Any]:
    """What `flat` undoes."""
    params: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, last = path.split("/")
        node = params
        for name in folders:
            node = node.setdefault(name, {})
        node[last] = array
    return params


def our_shape(row: Row, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the row's parameter."""
    return tuple(sizes[a] for a in row.our_axes)


def their_shape(row: Row, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the row's array."""
    sizes = {**sizes, "1": 1}
    return tuple(math.prod(sizes[a] for a in axis) for axis in re.findall("NH|.", row.their_axes))


def to_theirs(array: np.ndarray, row: Row, sizes: Sizes, order: np.ndarray | None = None) -> np.ndarray:
    """Our parameter as their array. `order`: our dimension of the model behind each of theirs, where they differ."""
    array = _permuted(array, row.our_axes, row.their_axes.replace("1", ""), order)
    return np.array(array.reshape(their_shape(row, sizes)), order="C")  # a copy: JAX's arrays are read-only


def to_ours(array: np.ndarray, row: Row, sizes: Sizes, order: np.ndarray | None = None) -> np.ndarray:
    """What `to_theirs` undoes, with the same `order`."""
    axes = row.their_axes.replace("1", "")
    array = array.reshape([sizes[a] for a in axes])
    return np.array(_permuted(array, axes, row.our_axes, None if order is None else np.argsort(order)), order="C")


def _permuted(array: np.ndarray, axes: str, to: str, order: np.ndarray | None) -> np.ndarray:
    """`array` with its axes in the order `to` and the dimensions of the model in the given order."""
    array = array.transpose([axes.index(a) for a in to])
    return array if order is None or "D" not in axes else array.take(order, axis=to.index("D"))


def mismatches(arrays: Arrays, expected: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
    """What is missing, unknown, misshapen, or expected twice."""
    shapes = dict(expected)
    wrong = [f"{name} is matched {n} times" for name, n in Counter(name for name, _ in expected).items() if n > 1]
    wrong += [f"missing {name}" for name in shapes if name not in arrays]
    wrong += [f"unknown {name}" for name in arrays if name not in shapes]
    return wrong + [
        f"{name} has shape {arrays[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]


def refuse(what: str, wrong: list[str]) -> None:
    """Raise `UserError` with all that is wrong, if anything is."""
    if wrong:
        raise UserError(f"{what}: {'; '.join(wrong)}")
