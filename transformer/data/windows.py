"""Rows of a language model: windows of a running text, or packed documents; training and evaluation batches of them.

A batch has int32 arrays of shape (rows, context):

    text        the pieces that the model reads
    next        the piece that follows each
    predicted   1 where that piece is to be predicted; 0 at padding, and at pieces that are only read
    document    only if the text has documents: the number of the document in the row, from 1; 0 = padding

The order of training batches is a pure function of (seed, epoch, step), so the step alone is enough to resume a run.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from transformer.config import UserError
from transformer.data.packing import pack, pack_cached
from transformer.data.text_store import TextStore

Batch = dict[str, np.ndarray]


class Span(NamedTuple):
    """Positions of one document that stand next to each other in a row (see `TextStore.read`)."""

    document: int
    begin: int
    end: int
    predicted: int
    """The first position at which the next piece is predicted; those before it are only read."""


class Rows(Protocol):
    """The rows of an epoch: each position of the text is predicted in exactly one of them."""

    store: TextStore
    context: int
    count: int
    """Number of rows; the same in every epoch."""

    def offset(self, rng: np.random.Generator) -> int:
        """Draw what distinguishes the rows of an epoch from those of another one."""
        ...

    def spans(self, row: int, offset: int) -> Sequence[Span]: ...

    def digest(self) -> str:
        """Hex digest of all that determines the rows, except the pieces."""
        ...


class Windows:
    """Windows of `context` positions of a running text, one behind the other. In each epoch the first one ends at
    another place: it and the last one share the positions that the full windows leave."""

    def __init__(self, store: TextStore, context: int):
        """Raises `UserError` if the text is shorter than a window."""
        self.store, self.context = store, context
        self._n = int(store.positions[0])
        if self._n < context:
            raise UserError(
                f"data.context = {context}: {store.source.name} has {self._n + 1:,} pieces, and a window needs "
                f"{context + 1:,} (one more than it reads); give more text, or lower data.context"
            )
        rest = self._n % context
        # Both end windows have at least one position. Of the two ways to share, take the one with more choices.
        ends = rest if 2 * rest > context + 2 else rest + context
        self._first = max(1, ends - context), min(context, ends - 1)
        """Least and most positions in the first window."""
        self.count = (self._n - ends) // context + 2

    def offset(self, rng: np.random.Generator) -> int:
        """Number of positions in the first window."""
        least, most = self._first
        return int(rng.integers(least, most + 1))

    def spans(self, row: int, offset: int) -> tuple[Span]:
        begin = max(offset + (row - 1) * self.context, 0)
        return (Span(0, begin, min(offset + row * self.context, self._n), begin),)

    def digest(self) -> str:
        return hashlib.sha256(f"windows {self._n} {self.context}".encode()).hexdigest()


class Packed:
    """Documents, several of them in a row. Those longer than a row are cut into consecutive parts."""

    def __init__(self, store: TextStore, context: int, seed: int):
        """The seed decides which documents share a row."""
        self.store, self.context = store, context
        self._document, self._begin, self._end = _parts(store, context)
        lengths = (self._end - self._begin).astype(np.int32)
        self._packed, self._starts = pack_cached(lengths, lengths, (context, context), seed, store.path)
        self.count = len(self._starts) - 1

    def offset(self, rng: np.random.Generator) -> int:
        return 0

    def spans(self, row: int, offset: int) -> list[Span]:
        parts = self._packed[self._starts[row] : self._starts[row + 1]]
        columns = self._document[parts], self._begin[parts], self._end[parts], self._begin[parts]
        return [Span(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]

    def digest(self) -> str:
        digest = hashlib.sha256(f"documents {self.context}".encode())
        for array in (self._document, self._begin, self._packed, self._starts):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        return digest.hexdigest()


def _parts(store: TextStore, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, begin and end of all parts of at most `context` positions."""
    counts = -(-store.positions // context)
    document = np.repeat(np.arange(len(store)), counts)
    begin = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * context
    return document, begin, np.minimum(begin + context, store.positions[document])


def rows_of(store: TextStore, context: int, seed: int) -> Rows:
    """The rows of a training text. Raises `UserError` if a running text is shorter than a window."""
    return Packed(store, context, seed) if store.framed else Windows(store, context)


def fill(store: TextStore, rows: Sequence[Sequence[Span]], context: int, count: int) -> Batch:
    """A batch of `count` rows with these spans; the rows after them are padding."""
    text, following, predicted, document = (np.zeros((count, context), np.int32) for _ in range(4))
    for r, spans in enumerate(rows):
        at = 0
        for number, span in enumerate(spans, 1):
            here = slice(at, at + span.end - span.begin)
            text[r, here], following[r, here] = store.read(span.document, span.begin, span.end)
            predicted[r, at + span.predicted - span.begin : here.stop] = 1
            document[r, here] = number
            at = here.stop
    batch = {"text": text, "next": following, "predicted": predicted}
    return batch | ({"document": document} if store.framed else {})


class Plan(NamedTuple):
    """The rows of an epoch in the order of its batches, and what `Rows.offset` drew."""

    order: np.ndarray
    offset: int


class Batches:
    """An endless random-access sequence of training batches (see `training.task.Batches`), all of one shape.

    An epoch has every row once, in random order. The rows are spread evenly over its batches, so that the batches
    differ by at most one row of padding.
    """

    def __init__(self, rows: Rows, *, batch_tokens: int, accumulate: int = 1, seed: int):
        """A batch has at most `batch_tokens` positions; its number of rows is a multiple of `accumulate`. Raises
        `UserError` if no such number of rows fits."""
        self.rows, self._seed, context = rows, seed, rows.context
        size = batch_tokens // (context * accumulate) * accumulate
        if not size:
            raise UserError(
                f"train.batch_tokens = {batch_tokens}: too small for {accumulate} micro-batches of a row of "
                f"data.context = {context} pieces; raise it or lower data.context"
            )
        self._size = min(size, -(-rows.count // accumulate) * accumulate)
        self.batches_per_epoch = -(-rows.count // self._size)
        """Number of updates in an epoch; the same for every epoch."""
        self._starts = np.arange(self.batches_per_epoch + 1) * rows.count // self.batches_per_epoch
        names = ("text", "next", "predicted", *(["document"] if rows.store.framed else []))
        self.shapes = (dict.fromkeys(names, (self._size, context)),)
        """The one shape of all batches."""
        positions = self.batches_per_epoch * self._size * context
        self.padding = 1 - int(rows.store.positions.sum()) / positions
        """Share of padding among all positions of an epoch."""
        self._lock = threading.Lock()
        self._plans: dict[int, Plan] = {}

    def digest(self) -> str:
        """Hex sha256 of all that determines the batches, except the pieces."""
        described = f"{self._seed} {self.shapes} {self.batches_per_epoch} {self.rows.digest()}"
        return hashlib.sha256(described.encode()).hexdigest()

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of update `step`, and its index within the epoch; both count from 0."""
        return divmod(step, self.batches_per_epoch)

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, context) of each array in the batch of update `step`."""
        return self.shapes[0]

    def _plan(self, epoch: int) -> Plan:
        with self._lock:  # Grain's threads may need the same plan at the same time
            if epoch not in self._plans:
                rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
                plan = Plan(rng.permutation(self.rows.count), self.rows.offset(rng))
                self._plans = {e: p for e, p in self._plans.items() if e == max(self._plans)} | {epoch: plan}
            return self._plans[epoch]

    def _spans(self, step: int) -> list[Sequence[Span]]:
        """The spans of each row in the batch of update `step`."""
        epoch, index = self.locate(step)
        order, offset = self._plan(epoch)
        return [self.rows.spans(int(row), offset) for row in order[self._starts[index] : self._starts[index + 1]]]

    def __getitem__(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return self.read(step, 0, self._size)

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of `batches[step]`, without reading the others. Rows beyond the last are padding."""
        return fill(self.rows.store, self._spans(step)[begin:end], self.rows.context, end - begin)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the text in the batch of update `step`: "a.txt:3-9,70; b.txt:1"."""
        return places(self.rows.store, itertools.chain.from_iterable(self._spans(step)))


def places(store: TextStore, spans: Iterator[Span]) -> str:
    """Files and lines of the pieces that the spans predict; see `Batches.lines`."""
    lines: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for span in spans:
        (file, first), (last_file, last) = (
            store.place(span.document, position) for position in (span.predicted, span.end - 1)
        )
        # A window may reach into the next file: then its last line is told of that file.
        lines[file].add((first, last if file == last_file else first))
        if last_file != file:
            lines[last_file].add((last, last))
    return "; ".join(
        f"{file}:" + ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in sorted(ranges))
        for file, ranges in lines.items()
    )


def evaluation_batches(
    store: TextStore, *, context: int, batch_tokens: int, stride: int | None = None
) -> Iterator[Batch]:
    """Yield batches, all of one shape, in which each position of a text is predicted once.

    Without a stride, the text or each document is cut into blocks of `context`. With one, each block begins `stride`
    positions after the block before it and predicts only what follows that block: all but the first `context` pieces
    are predicted with at least `context - stride` pieces before them. Raises `UserError` if the stride is not between
    1 and `context`, or if there is nothing to predict.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride {stride}: must be from 1 to data.context ({context})")
    if not store.positions.sum():
        raise UserError(f"{store.source.name}: has a single piece, so nothing is predicted; give more text")
    count = max(batch_tokens // context, 1)
    rows = (
        _packed_blocks(store, context, stride) if store.framed else ([span] for span in _blocks(store, context, stride))
    )
    while batch := list(itertools.islice(rows, count)):
        yield fill(store, batch, context, count)


def _blocks(store: TextStore, context: int, stride: int) -> Iterator[Span]:
    for document, positions in enumerate(store.positions.tolist()):
        begin = predicted = 0
        while predicted < positions:
            end = min(begin + context, positions)
            yield Span(document, begin, end, predicted)
            begin, predicted = begin + stride, end


def _single_blocks(store: TextStore, context: int, stride: int) -> Iterator[list[Span]]:
    return ([block] for block in _blocks(store, context, stride))


def _packed_blocks(store: TextStore, context: int, stride: int) -> Iterator[list[Span]]:
    """The blocks of documents, several of them in a row."""
    blocks = np.array(list(_blocks(store, context, stride)), np.int64).reshape(-1, len(Span._fields))
    lengths = blocks[:, 2] - blocks[:, 1]
    order, starts = pack(lengths, lengths, (context, context), seed=0)
    for begin, end in itertools.pairwise(starts):
        yield [Span(*block) for block in blocks[order[begin:end]].tolist()]
