"""Pack several sentence pairs into one row, so that a batch has hardly any padding.

This is two-dimensional bin packing: a row has a source length and a target length, and a pair takes some of both. Pairs
are placed longest first, all pairs of one size together. A pair goes to a row that it fills up; if there is none, to
the emptiest row. So all rows fill up evenly on both sides, and the many short pairs fill the gaps. All arithmetic is on
integers and all sorts are stable: every machine gets the same rows.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np

from transformer.config import UserError
from transformer.files import cached, compared

log = logging.getLogger("transformer")

_FORMAT = 2  # version of cached rows; raise it when pairs are packed in another way
_ARRAYS = ("pairs.npy", "starts.npy")
_CACHED_FROM = 100_000  # pairs; packing fewer takes a moment
_CHUNK = 16_384  # pairs packed together; more would fit a little better and take longer
_SCALE = 1_000  # free space is counted in thousandths of a row's length
_NEARLY_FULL = 20  # a row with no more free space than this counts as full
_SPARE = 5  # thousandths of rows to start with beyond the lower bound
_SAMPLE = 2 * _CHUNK  # pairs on which row lengths are tried
_MAX_PADDING = 0.03  # share of padding that is low enough: no longer rows are tried


def pack(
    source: np.ndarray, target: np.ndarray, row_lengths: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack pairs into rows of at most row_lengths[0] source and row_lengths[1] target positions.

    Returns `pairs`, the indices of all pairs row by row, and `starts`: row r holds pairs[starts[r]:starts[r + 1]].
    `source` and `target` are the lengths of the pairs, from 1 to the row lengths. The seed decides which pairs share a
    row.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(source)]))
    shuffled = rng.permutation(len(source))
    row_of, rows = np.empty(len(source), np.int64), 0
    for begin in range(0, len(source), _CHUNK):
        chunk = shuffled[begin : begin + _CHUNK]
        chunk_rows, count = _pack_chunk(source[chunk].astype(np.int32), target[chunk].astype(np.int32), *row_lengths)
        row_of[begin : begin + _CHUNK] = chunk_rows + rows
        rows += count
    by_row = np.argsort(row_of, kind="stable")
    return shuffled[by_row], np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])


def pack_cached(
    source: np.ndarray, target: np.ndarray, row_lengths: tuple[int, int], seed: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """As `pack`, with the rows of a large corpus cached in `folder`, because packing takes longer than reading.

    Logs a warning if the cache can't be written.
    """
    if len(source) < _CACHED_FROM:
        return pack(source, target, row_lengths, seed)
    digest = hashlib.sha256(f"{_FORMAT} {row_lengths[0]} {row_lengths[1]} {seed} {len(source)}".encode())
    for lengths in (source, target):
        digest.update(np.ascontiguousarray(lengths, "<i4").data)
    packed: list[tuple[np.ndarray, np.ndarray]] = []

    def write(new: Path) -> None:
        log.info("packing %s pairs into rows", f"{len(source):,}")
        packed.append(pack(source, target, row_lengths, seed))
        for name, array in zip(_ARRAYS, packed[0], strict=True):
            with compared(new / name) as file:
                np.save(file, array, allow_pickle=False)

    def read(path: Path) -> tuple[np.ndarray, ...]:
        return tuple(np.load(path / name, allow_pickle=False) for name in _ARRAYS)

    try:
        return cached(folder / f"packed-{digest.hexdigest()[:32]}", write, read, "packed rows")
    except (OSError, UserError) as error:
        log.warning("packed rows are not kept for the next run: %s", error)
        return packed[0] if packed else pack(source, target, row_lengths, seed)


def _pack_chunk(source: np.ndarray, target: np.ndarray, S: int, T: int) -> tuple[np.ndarray, int]:
    """The row of each pair, and the number of rows."""
    combined = source.astype(np.int64) * (T + 1) + target
    sizes, size_of, count = np.unique(combined, return_inverse=True, return_counts=True)
    pairs_of_size = np.split(np.argsort(size_of, kind="stable"), np.cumsum(count)[:-1])
    size_S, size_T = (sizes // (T + 1)).astype(np.int32), (sizes % (T + 1)).astype(np.int32)
    share_S, share_T = size_S * _SCALE // S, size_T * _SCALE // T
    # Longest first. Of two equally long pairs, first the more uneven one, which is harder to place.
    largest_first = np.argsort(-(2 * (share_S + share_T) + np.abs(share_S - share_T)), kind="stable")
    least_rows = max(-(-int(source.sum()) // S), -(-int(target.sum()) // T))
    rows = least_rows + least_rows * _SPARE // 1_000
    left_S, left_T = np.full(rows, S, np.int32), np.full(rows, T, np.int32)
    row_of = np.empty(len(source), np.int64)
    for i in largest_first:
        waiting = pairs_of_size[i]
        while len(waiting):
            fits = np.flatnonzero((left_S >= size_S[i]) & (left_T >= size_T[i]))
            if not len(fits):
                more = -(-len(waiting) // min(S // size_S[i], T // size_T[i]))
                left_S, left_T = (
                    np.append(left_S, np.full(more, S, np.int32)),
                    np.append(left_T, np.full(more, T, np.int32)),
                )
                continue
            # Free space left on each side. Thousandths fit 16 bits, and a stable sort of 16 bits takes linear time.
            rest_S, rest_T = (left_S[fits] - size_S[i]) * _SCALE // S, (left_T[fits] - size_T[i]) * _SCALE // T
            least, most = np.minimum(rest_S, rest_T), np.maximum(rest_S, rest_T)
            score = np.where(most <= _NEARLY_FULL, 3 * _SCALE - most, 2 * least - (most - least)).astype(np.int16)
            chosen = fits[np.argsort(-score, kind="stable")[: len(waiting)]]
            left_S[chosen] -= size_S[i]
            left_T[chosen] -= size_T[i]
            row_of[waiting[: len(chosen)]] = chosen
            waiting = waiting[len(chosen) :]
    used, row_of = np.unique(row_of, return_inverse=True)
    return row_of, len(used)


def choose_row_lengths(source: np.ndarray, target: np.ndarray, longest: int, seed: int) -> tuple[int, int]:
    """The source and target length of rows: the shortest with under 3 % padding, or the best of those tried.

    Rows are no longer than needed because the cost of attention grows with their length. The ratio of the two lengths
    is that of all source to all target positions, so that both sides fill up. The shorter one is at least as long as
    the longest sentence. Neither exceeds `longest`, unless the longest sentence needs it. Both are multiples of 8.
    """
    sample = np.random.default_rng(np.random.SeedSequence([seed, len(source)])).permutation(len(source))[:_SAMPLE]
    source_sum, target_sum = int(source.sum()), int(target.sum())
    positions = int(source[sample].sum()) + int(target[sample].sum())
    best = (1.0, (0, 0))
    for factor in (4, 5, 6, 8, 12, 16):
        least = _round_up(max(int(source.max()), int(target.max())) * factor // 4)
        if source_sum < target_sum:
            sides = least, _round_up(-(-least * target_sum // source_sum))
        else:
            sides = _round_up(-(-least * source_sum // target_sum)), least
        if factor > 4 and max(sides) > longest:
            break
        _, starts = pack(source[sample], target[sample], sides, seed)
        padding = 1 - positions / ((len(starts) - 1) * sum(sides))
        best = min(best, (padding, sides))
        if padding < _MAX_PADDING:
            break
    return best[1]


def _round_up(length: int) -> int:
    return -(-length // 8) * 8
