"""Training and evaluation batches under a budget of tokens. Training packs pairs into rows of one length, or buckets
them by length into a few fixed shapes.

The order of training batches is a pure function of (seed, epoch, step). PCG64, seeded with SeedSequence([seed, epoch]),
draws the plan of each epoch; numpy keeps this stream, and the use that Generator.permutation makes of it, stable. So
the step alone is enough to resume a run. Every epoch has the same shapes and the same number of batches.
Lengths include EOS on both sides, as the model sees them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from transformer.config import PAD, UserError
from transformer.data.bpe_dropout import BpeDropout
from transformer.data.buckets import Shape, bucket_shapes, fitting_rows, round_up
from transformer.data.packing import choose_row_lengths, pack_cached
from transformer.data.tokens import TokenStore

Batch = dict[str, np.ndarray]


class Plan(NamedTuple):
    """The batches of an epoch: batch b has the rows `rows[starts[b]:starts[b + 1]]`; the i-th batch is b = order[i]."""

    rows: np.ndarray
    order: np.ndarray


def _gather(store: TokenStore, pairs: np.ndarray, shape: Shape) -> Batch:
    """A batch with one pair of the store in each row, padded with PAD. Rows beyond the last pair are PAD."""
    batch = _empty_batch(shape)
    for side, ids in batch.items():
        _write(ids, store, side, pairs, np.arange(len(pairs)) * ids.shape[1])
    return batch


def _empty_batch(shape: Shape) -> Batch:
    return {
        "source": np.full((shape.rows, shape.source), PAD, np.int32),
        "target": np.full((shape.rows, shape.target), PAD, np.int32),
    }


def _write(ids: np.ndarray, store: TokenStore, side: str, pairs: np.ndarray, flat_starts: np.ndarray) -> None:
    """Write one side of the given pairs, each followed by its end, into `ids`. Pair i starts at `flat_starts[i]` of the
    flattened array."""
    tokens, offsets = getattr(store, f"{side}_tokens"), getattr(store, f"{side}_offsets")
    starts = offsets[pairs]
    lengths = offsets[pairs + 1] - starts
    # The position of each piece within its pair: 0, 1, ..., 0, 1, ...
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = ids.reshape(-1)
    flat[within + np.repeat(flat_starts, lengths)] = tokens[within + np.repeat(starts, lengths)]
    flat[flat_starts + lengths] = store.ends[side]


def _usable(
    source: np.ndarray, target: np.ndarray, max_length: int, max_ratio: float
) -> tuple[np.ndarray, dict[str, int]]:
    """Indices of the pairs that training uses, and the number of dropped pairs by reason. Lengths include EOS.

    Raises `UserError` if no pair is left.
    """
    empty = (source == 1) | (target == 1)
    long = ~empty & ((source > max_length) | (target > max_length))
    skewed = ~empty & ~long & (np.maximum(source, target) > max_ratio * np.minimum(source, target))
    dropped = {"empty": int(empty.sum()), "too long": int(long.sum()), "ratio": int(skewed.sum())}
    kept = np.flatnonzero(~(empty | long | skewed))
    if not len(kept):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"data.source: no training pair is left of {len(source):,} ({reasons}); "
            f"check the text, data.max_length = {max_length} and data.max_ratio = {max_ratio}"
        )
    return kept.astype(np.int32 if len(source) < 2**31 else np.int64), dropped


def _lengths(stores: Sequence[TokenStore], side: str, dropout: BpeDropout | None = None, most: int = 0) -> np.ndarray:
    """The pieces of each sentence of a side, EOS included; with `dropout`, those to plan with."""
    if dropout is None:
        return np.concatenate([getattr(store, f"{side}_lengths") for store in stores]) + 1
    return np.concatenate([dropout.planned(store, side, most) for store in stores])


def _too_small(batch_tokens: int, accumulate: int, unit: str, shapes: Sequence[Shape]) -> UserError:
    return UserError(
        f"train.batch_tokens = {batch_tokens}: too small for {accumulate} micro-batches of a {unit} of "
        f"{max(max(shape[1:]) for shape in shapes)} pieces; raise it or lower data.max_length"
    )


def _by_bucket(pairs: np.ndarray, bucket: np.ndarray, n: int) -> list[np.ndarray]:
    """Split pairs into n buckets and keep their order within each. `bucket[i]` is the bucket of `pairs[i]`."""
    ends = np.cumsum(np.bincount(bucket, minlength=n))
    return np.split(pairs[np.argsort(bucket, kind="stable")], ends[:-1])


def _strata(rows: np.ndarray, first_rows: np.ndarray, weights: Sequence[float]) -> list[tuple[np.ndarray, int, int]]:
    """For each store (part, times, drawn): its part of `rows`; how often an epoch has all of them; how many more it
    draws at random.

    Store c has the row numbers from `first_rows[c]` up to `first_rows[c + 1]`.
    """
    strata = []
    parts = np.split(rows, np.searchsorted(rows, first_rows[1:-1]))
    for weight, part in zip(weights, parts, strict=True):
        times = int(weight)
        strata.append((part, times, math.ceil(round((weight - times) * len(part), 6))))
    return strata


class Batches:
    """An endless random-access sequence of training batches; `batches[step]` is the batch of update `step` (from 0).

    With packing, a row holds several pairs of one store, one after the other on both sides, and the same pairs share a
    row in every epoch; all batches have one shape. Without packing, a row is one pair. Rows of similar length share one
    of `n_buckets` buckets, and each bucket has its own shape.

    An epoch has each row of store c floor(weight) times. For the fraction of the weight, each epoch draws that share of
    the store's rows anew (rounded up in each bucket). Rows of a bucket that do not fill a batch move up to the next
    bucket. Only one batch of an epoch can be partial; it is filled up with rows of PAD. No shape depends on the number
    of devices.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        *,
        weights: Sequence[float] | None = None,
        batch_tokens: int,
        accumulate: int = 1,
        max_length: int,
        max_ratio: float,
        n_buckets: int,
        packing: bool = False,
        outliers: float = 0.0,
        dropout: BpeDropout | None = None,
        seed: int,
    ):
        """For the parameters see `DataConfig`, `TrainConfig` and `bucket_shapes`. Each side of a batch has at most
        `batch_tokens` positions; the number of rows is a multiple of `accumulate`. With `dropout`, it cuts sentences
        anew in each epoch. Raises `UserError` if no pair is left, or if the longest row does not fit the budget.
        """
        self._stores, self._dropout, self._seed = list(stores), dropout, seed
        self._first_pairs = np.cumsum([0, *map(len, stores)])  # index of each store's first pair among all pairs
        source, target = (_lengths(stores, side) for side in ("source", "target"))
        kept, self.dropped = _usable(source, target, max_length, max_ratio)
        """Number of dropped pairs by reason; each pair counts once."""
        self.kept = len(kept)
        """Number of pairs that training uses."""
        sizes = (source + target)[kept]
        if dropout is not None:
            source, target = (_lengths(stores, side, dropout, max_length) for side in ("source", "target"))
            self._planned = {"source": source, "target": target}
        source, target = source[kept], target[kept]
        weights = weights or [1.0] * len(stores)
        # Row r has the pairs `_pairs[_row_starts[r]:_row_starts[r + 1]]`. None: row r is pair r.
        self._pairs: np.ndarray | None = None
        epoch_size = math.ceil(np.dot(weights, np.diff(np.searchsorted(kept, self._first_pairs))))
        if epoch_size >= 2**31:
            raise UserError(f"data.weights: an epoch would have {epoch_size:,} pairs, at most 2**31 can be; lower them")
        if packing:
            row_lengths = choose_row_lengths(source, target, batch_tokens // (8 * accumulate), seed)
            first_rows = self._pack(kept, source, target, row_lengths, seed)
            epoch_size = math.ceil(np.dot(weights, np.diff(first_rows)))
            shapes = [Shape(fitting_rows(batch_tokens // max(row_lengths), accumulate, epoch_size), *row_lengths)]
            in_buckets = [np.arange(first_rows[-1], dtype=kept.dtype)]
        else:
            how = (n_buckets, batch_tokens, accumulate, max_length, epoch_size, outliers)
            shapes, bucket = bucket_shapes(source, target, *how)
            first_rows, in_buckets = self._first_pairs, _by_bucket(kept, bucket, len(shapes))
        if not all(shape.rows for shape in shapes):
            raise _too_small(batch_tokens, accumulate, "row of packed sentences" if packing else "sentence", shapes)
        self._shapes = shapes
        # strata[b]: for each store, what `_strata` gives for bucket b.
        self._strata = [_strata(rows, first_rows, weights) for rows in in_buckets]
        self._count_batches()

        self._lock = threading.Lock()
        self._plans: dict[int, Plan] = {}
        self.padding = self._padding(kept, sizes)
        """Share of padding among all positions of the first epoch, source and target together."""

    def _padding(self, kept: np.ndarray, sizes: np.ndarray) -> float:
        shapes = self._shapes
        positions = sum(shapes[b].rows * (shapes[b].source + shapes[b].target) for b in self._shape_of)
        length = np.zeros(self._first_pairs[-1], np.int32)
        length[kept] = sizes
        return 1 - int(length[self._pairs_in(self._plan(0).rows)[0]].sum(dtype=np.int64)) / positions

    def _count_batches(self) -> None:
        """Count the batches of each shape in an epoch. Rows that do not fill a batch move up to the next bucket."""
        leftover, sizes = 0, []
        self._full = []
        for shape, strata in zip(self._shapes, self._strata, strict=True):
            leftover += sum(len(part) * times + drawn for part, times, drawn in strata)
            full, leftover = divmod(leftover, shape.rows)
            self._full.append(full)
            sizes += [shape.rows] * full
        self._shape_of = np.repeat(np.arange(len(self._shapes)), self._full)
        if leftover:
            sizes.append(leftover)
            self._shape_of = np.append(self._shape_of, len(self._shapes) - 1)
        self._starts = np.cumsum([0, *sizes])
        self.batches_per_epoch = len(sizes)
        """Number of updates in an epoch; the same for every epoch."""
        self.shapes = tuple(self._shapes[b].by_name for b in np.unique(self._shape_of))
        """The shapes of all batches, shortest first: {"source": (rows, length), "target": (rows, length)}."""

    def digest(self) -> str:
        """Hex sha256 of all that determines the batches, except the tokens: rows, their pairs, shapes and the seed."""
        digest = hashlib.sha256(f"{self._seed} {self.shapes} {self._full} {self.batches_per_epoch}".encode())
        if self._dropout is not None:
            digest.update(f"BPE dropout {self._dropout.rate}".encode())
        rows = [part for strata in self._strata for part, _, _ in strata]
        packed = [] if self._pairs is None else [self._pairs, self._row_starts]
        for array in (*rows, *packed):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _pack(
        self, kept: np.ndarray, source: np.ndarray, target: np.ndarray, row_lengths: tuple[int, int], seed: int
    ) -> np.ndarray:
        """Pack the kept pairs of each store into rows; no row mixes stores. Returns each store's first row number."""
        pairs, starts, rows = [], [np.zeros(1, np.int64)], [0]
        bounds = np.searchsorted(kept, self._first_pairs)
        for store, (begin, end) in zip(self._stores, itertools.pairwise(bounds), strict=True):
            order, row_starts = pack_cached(source[begin:end], target[begin:end], row_lengths, seed, store.path)
            pairs.append(kept[begin:end][order])
            starts.append(row_starts[1:] + begin)
            rows.append(rows[-1] + len(row_starts) - 1)
        self._pairs, self._row_starts = np.concatenate(pairs), np.concatenate(starts)
        return np.array(rows)

    def _plan(self, epoch: int) -> Plan:
        with self._lock:  # Grain's threads may need the same plan at the same time
            if epoch not in self._plans:
                rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
                leftover, batches = np.zeros(0, self._strata[0][0][0].dtype), []
                for shape, full, strata in zip(self._shapes, self._full, self._strata, strict=True):
                    pool = [leftover]
                    for part, times, drawn in strata:
                        pool += [part] * times
                        if drawn:
                            pool.append(rng.permutation(part)[:drawn])
                    mixed = rng.permutation(np.concatenate(pool))
                    batches.append(mixed[: full * shape.rows])
                    leftover = mixed[full * shape.rows :]
                plan = Plan(np.concatenate([*batches, leftover]), rng.permutation(self.batches_per_epoch))
                self._plans = {e: p for e, p in self._plans.items() if e == max(self._plans)} | {epoch: plan}
            return self._plans[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of update `step`, and its index within the epoch; both count from 0."""
        return divmod(step, self.batches_per_epoch)

    def _rows(self, step: int) -> tuple[np.ndarray, Shape]:
        epoch, index = self.locate(step)
        plan = self._plan(epoch)
        b = plan.order[index]
        return plan.rows[self._starts[b] : self._starts[b + 1]], self._shapes[self._shape_of[b]]

    def _pairs_in(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of the given rows, row by row, and for each pair the index of its row within `rows`."""
        if self._pairs is None:
            return rows, np.arange(len(rows))
        counts = self._row_starts[rows + 1] - self._row_starts[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._pairs[within + np.repeat(self._row_starts[rows], counts)], np.repeat(np.arange(len(rows)), counts)

    def lines(self, step: int) -> np.ndarray:
        """For each pair of the batch, the index of its store and its line in that store, from 0: int64 (pairs, 2)."""
        pairs, _ = self._pairs_in(self._rows(step)[0])
        store_of = np.searchsorted(self._first_pairs, pairs, side="right") - 1
        return np.stack([store_of, pairs - self._first_pairs[store_of]], axis=1)

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each side in the batch of update `step`."""
        return self._rows(step)[1].by_name

    def __getitem__(self, step: int) -> Batch:
        """{"source": int32 (rows, source), "target": int32 (rows, target)}; each row is ids, EOS, PAD …, without BOS.

        With packing, each row is ids, EOS, ids, EOS, …, PAD …, with the same number of EOS on both sides.
        """
        return self.read(step, 0, self._rows(step)[1].rows)

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of `batches[step]`, without reading the others. Rows beyond the last are PAD."""
        rows, shape = self._rows(step)
        rows, shape = rows[begin:end], shape._replace(rows=end - begin)
        pairs, row = self._pairs_in(rows)
        store_of = np.searchsorted(self._first_pairs, pairs, side="right") - 1
        batch = _empty_batch(shape)
        if self._dropout is not None:
            self._cut_anew(batch, pairs, row, self.locate(step)[0])
            return batch
        by_store = [pairs[store_of == c] - self._first_pairs[c] for c in range(len(self._stores))]
        for side, ids in batch.items():
            lengths = np.empty(len(pairs), np.int64)
            for c, (store, store_pairs) in enumerate(zip(self._stores, by_store, strict=True)):
                offsets = getattr(store, f"{side}_offsets")
                lengths[store_of == c] = offsets[store_pairs + 1] - offsets[store_pairs] + 1
            # Each pair starts where the pair before it in the same row ends.
            before = np.cumsum(lengths) - lengths
            flat_starts = row * ids.shape[1] + before - before[np.searchsorted(row, row)]
            for c, (store, store_pairs) in enumerate(zip(self._stores, by_store, strict=True)):
                if len(store_pairs):
                    _write(ids, store, side, store_pairs, flat_starts[store_of == c])
        return batch

    def _cut_anew(self, batch: Batch, pairs: np.ndarray, row: np.ndarray, epoch: int) -> None:
        """Write the pairs, as `dropout` cuts them in this epoch, into their rows of the batch."""
        store_of = np.searchsorted(self._first_pairs, pairs, side="right") - 1
        for number, (side, ids) in enumerate(batch.items()):
            begin = np.zeros(len(ids), np.int64)  # the first free position of each row
            for pair, r, c in zip(pairs.tolist(), row.tolist(), store_of.tolist(), strict=True):
                store, i = self._stores[c], pair - int(self._first_pairs[c])
                given, most = getattr(store, side)(i).tolist(), int(self._planned[side][pair]) - 1
                pieces = [*self._dropout(given, most, epoch, pair, number), store.ends[side]]
                ids[r, begin[r] : begin[r] + len(pieces)] = pieces
                begin[r] += len(pieces)


def too_long(store: TokenStore, max_length: float) -> np.ndarray:
    """Indices of the pairs with more than `max_length` pieces on a side, EOS included."""
    return np.flatnonzero(np.maximum(store.source_lengths, store.target_lengths) + 1 > max_length)


def evaluation_batches(
    store: TokenStore,
    *,
    batch_tokens: int,
    n_buckets: int,
    max_length: float = math.inf,
    more: Callable[[Sequence[int], Batch], Batch] = lambda numbers, batch: batch,
) -> Iterator[Batch]:
    """Yield every pair once, shortest first, in bucketed batches as `Batches` gives; skip pairs that are `too_long`.

    An empty side is EOS alone. If the longest sentence exceeds `batch_tokens`, its length is the budget. `more` gets
    the numbers of the pairs and their batch, and returns the batch to yield.
    """
    kept = np.setdiff1d(np.arange(len(store)), too_long(store, max_length))
    if not len(kept):
        return
    source, target = store.source_lengths[kept] + 1, store.target_lengths[kept] + 1
    longest = int(round_up(max(source.max(), target.max())))
    shapes, bucket = bucket_shapes(source, target, n_buckets, max(batch_tokens, longest), 1, longest, len(kept))
    order = np.argsort(np.maximum(source, target), kind="stable")
    begin = 0
    for b, shape in enumerate(shapes):
        end = np.searchsorted(bucket[order], b, side="right")
        while end - begin >= shape.rows or (b == len(shapes) - 1 and end > begin):
            pairs = kept[order[begin : min(end, begin + shape.rows)]]
            yield more(pairs, _gather(store, pairs, shape))
            begin = min(end, begin + shape.rows)
