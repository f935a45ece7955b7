"""Shapes of batches: length buckets with the least padding, and the number of rows that a budget of tokens allows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Shape(NamedTuple):
    """The shape of a batch."""

    rows: int
    source: int
    """Positions in a row on the source side, EOS and padding included."""
    target: int

    @property
    def by_name(self) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each side."""
        return {"source": (self.rows, self.source), "target": (self.rows, self.target)}


def round_up(length: np.ndarray | int) -> Any:
    """Round up to a length at which a bucket may end: a multiple of 4 up to 64, of 8 beyond."""
    return np.where(length <= 64, -(-length // 4) * 4, -(-length // 8) * 8)


def length_buckets(source_lengths: np.ndarray, target_lengths: np.ndarray, n_buckets: int) -> tuple[int, ...]:
    """At most `n_buckets` ascending boundaries on max(source, target) with the least padding.

    A pair belongs to the first bucket whose boundary is at least as long as its longer side. The last boundary is at
    least as long as the longest sentence. The choice is optimal (dynamic programming over the histogram of lengths)
    among boundaries that are multiples of 4 up to 64 and of 8 beyond. Lengths include EOS.
    """
    longer = np.maximum(source_lengths, target_lengths)
    ends, end_of = np.unique(round_up(longer), return_inverse=True)
    count = np.concatenate([[0], np.cumsum(np.bincount(end_of))])  # pairs up to each end
    # Each side of a batch is padded to the longest sentence on that side up to the bucket's end (see `bucket_shapes`).
    width = sum(round_up(_running_max(side, end_of, len(ends))) for side in (source_lengths, target_lengths))

    # cost[j] = least number of positions for the pairs up to end j in k buckets; starts[k][j] = first end of the last
    # of these buckets.
    n = len(ends)
    cost = np.concatenate([[0.0], count[1:] * width])
    starts = []
    for _ in range(min(n_buckets, n) - 1):
        options = cost[None, :-1] + (count[1:, None] - count[None, :-1]) * width[:, None].astype(float)
        options[np.triu_indices(n, 1)] = np.inf  # the last bucket starts at or before its end
        starts.append(options.argmin(axis=1))
        cost = np.concatenate([[0.0], options.min(axis=1)])
    boundaries, j = [int(ends[-1])], n - 1
    for start in reversed(starts):
        j = start[j] - 1
        if j < 0:
            break
        boundaries.append(int(ends[j]))
    return tuple(reversed(boundaries))


def _running_max(lengths: np.ndarray, group_of: np.ndarray, n: int) -> np.ndarray:
    """For each i < n, the largest of `lengths` in the groups 0 to i."""
    longest = np.zeros(n, np.int64)
    np.maximum.at(longest, group_of, lengths)
    return np.maximum.accumulate(longest)


def bucket_shapes(
    source: np.ndarray,
    target: np.ndarray,
    n_buckets: int,
    batch_tokens: int,
    accumulate: int,
    max_length: int,
    n: int,
    outliers: float = 0.0,
) -> tuple[list[Shape], np.ndarray]:
    """The shape of each bucket, and the bucket of each pair. No shape has more rows than an epoch of `n` pairs needs.

    A pair fits the shape of its bucket and those of all later buckets: both sides grow from bucket to bucket.
    `outliers`: about this share of the pairs of a bucket, those with the longest sources or targets, move up to the
    next one. That saves padding where one side is usually shorter than the other.
    """
    boundaries = np.array(length_buckets(source, target, n_buckets))
    bucket = np.searchsorted(boundaries, np.maximum(source, target)).astype(np.int16)
    for b in range(len(boundaries) - 1 if outliers else 0):
        of_bucket = bucket == b
        for side in (source, target):
            if of_bucket.any():
                widest = round_up(int(np.quantile(side[of_bucket], 1 - outliers, method="lower")))
                bucket[of_bucket & (side > widest)] = b + 1
    widths = [
        np.minimum(round_up(_running_max(side, bucket, len(boundaries))), max_length) for side in (source, target)
    ]
    shapes = [
        Shape(fitting_rows(batch_tokens // max(int(s), int(t)), accumulate, n), int(s), int(t))
        for s, t in zip(*widths, strict=True)
    ]
    return shapes, bucket


def fitting_rows(rows: int, accumulate: int, n: int) -> int:
    """The number of rows of a batch: at most `rows`, no more than n items need, and a multiple of `accumulate`."""
    # Multiples of 8 fill the devices and their vector units. Fewer rows must at least divide into the micro-batches.
    step = 8 * accumulate if rows >= 8 * accumulate else accumulate
    return min(rows // step, -(-n // step)) * step
