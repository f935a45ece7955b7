"""RASP-L: programs that a causal Transformer can compute at any length (Zhou et al. 2023, arXiv 2310.16028).

A value is an array with a number for each position. Functions of single positions are NumPy's; what looks at other
positions is here. A position sees itself and earlier ones only. Indices of positions are no numbers to compute with:
a program may compare them, and no more. That is the difference between RASP and RASP-L.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Predicate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(keys, queries) -> whether a query selects a key."""


def select(keys: np.ndarray, queries: np.ndarray, predicate: Predicate) -> np.ndarray:
    """Whether each position (row) attends to each other one (column): the pattern of one head of attention."""
    return np.tril(predicate(keys[None, :], queries[:, None]))


def width(pattern: np.ndarray) -> np.ndarray:
    """The number of positions that each position attends to."""
    return pattern.sum(axis=1)


def aggregate(
    pattern: np.ndarray, values: np.ndarray, default: float = 0, by: Literal["mean", "max", "min"] = "mean"
) -> np.ndarray:
    """The mean, largest or smallest of the values that each position attends to; `default` where it attends to none."""
    found = width(pattern) > 0
    if by == "mean":
        result = (pattern * values[None, :]).sum(axis=1) / np.maximum(width(pattern), 1)
    else:
        ends = {"max": (-np.inf, np.max), "min": (np.inf, np.min)}
        nothing, reduce = ends[by]
        result = reduce(np.where(pattern, values[None, :].astype(float), nothing), axis=1)
    return np.where(found, result, default)


def kqv(
    keys: np.ndarray,
    queries: np.ndarray,
    values: np.ndarray,
    predicate: Predicate,
    default: float = 0,
    by: Literal["mean", "max", "min"] = "mean",
) -> np.ndarray:
    """One head of attention: `aggregate` of the values that `select` chooses."""
    return aggregate(select(keys, queries, predicate), values, default, by)


def shifted(x: np.ndarray, default: float) -> np.ndarray:
    """The value at the position before each position; `default` at the first."""
    return np.concatenate([[default], x[:-1]])


def seen(where: np.ndarray) -> np.ndarray:
    """Whether a condition holds at a position or at an earlier one."""
    return np.maximum.accumulate(where)


def first_where(where: np.ndarray, values: np.ndarray, default: float = 0) -> np.ndarray:
    """The value at the first position so far at which a condition holds; `default` before there is one."""
    is_first = where & ~shifted(seen(where), 0).astype(bool)
    return kqv(is_first, np.ones_like(where), values, np.equal, default, "max")
