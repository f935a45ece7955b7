"""Rows of a language model: windows of a running text, or packed documents; evaluation batches of a text.

A batch has int32 arrays of shape (rows, context):

    text        the pieces that the model reads
    next        the piece that follows each
    predicted   1 where that piece is to be predicted; 0 at padding, and at pieces that are only read
    document    only if the text has documents: the number of the document in the row, from 1; 0 = padding
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from transformer.config import UserError
from transformer.data.packing import pack, pack_cached
from transformer.data.rows import Batch, told
from transformer.data.text_store import TextStore


class Span(NamedTuple):
    """Positions of one document that stand next to each other in a row (see `TextStore.read`)."""

    document: int
    begin: int
    end: int
    predicted: int
    """The first position at which the next piece is predicted; those before it are only read."""


class Spans:
    """Rows of spans (see `rows.Rows`): each position of the text is predicted in exactly one row of an epoch."""

    def __init__(self, store: TextStore, context: int):
        self.store, self.context = store, context
        names = ("text", "next", "predicted", *(["document"] if store.framed else []))
        self.lengths = dict.fromkeys(names, context)
        self.used = int(store.positions.sum())

    def spans(self, row: int, drawn: int) -> Sequence[Span]:
        """The spans of a row in an epoch for which `draw` gave `drawn`."""
        raise NotImplementedError

    def batch(self, rows: Sequence[int], drawn: int, count: int) -> Batch:
        return fill(self.store, [self.spans(row, drawn) for row in rows], self.context, count)

    def lines(self, rows: Sequence[int], drawn: int) -> str:
        return places(self.store, itertools.chain.from_iterable(self.spans(row, drawn) for row in rows))


class Windows(Spans):
    """Windows of `context` positions of a running text, one behind the other. In each epoch the first one ends at
    another place: it and the last one share the positions that the full windows leave."""

    def __init__(self, store: TextStore, context: int):
        """Raises `UserError` if the text is shorter than a window."""
        super().__init__(store, context)
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

    def draw(self, rng: np.random.Generator) -> int:
        """Number of positions in the first window."""
        least, most = self._first
        return int(rng.integers(least, most + 1))

    def spans(self, row: int, drawn: int) -> tuple[Span]:
        begin = max(drawn + (row - 1) * self.context, 0)
        return (Span(0, begin, min(drawn + row * self.context, self._n), begin),)

    def digest(self) -> str:
        return hashlib.sha256(f"windows {self._n} {self.context}".encode()).hexdigest()


class Packed(Spans):
    """Documents, several of them in a row. Those longer than a row are cut into consecutive parts."""

    def __init__(self, store: TextStore, context: int, seed: int):
        """The seed decides which documents share a row."""
        super().__init__(store, context)
        self._document, self._begin, self._end = _parts(store, context)
        lengths = (self._end - self._begin).astype(np.int32)
        self._packed, self._starts = pack_cached(lengths, lengths, (context, context), seed, store.path)
        self.count = len(self._starts) - 1

    def draw(self, rng: np.random.Generator) -> int:
        return 0

    def spans(self, row: int, drawn: int) -> list[Span]:
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


def rows_of(store: TextStore, context: int, seed: int) -> Spans:
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


def places(store: TextStore, spans: Iterator[Span]) -> str:
    """Files and lines of the pieces that the spans predict; see `Rows.lines`."""
    lines: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for span in spans:
        (file, first), (last_file, last) = (
            store.place(span.document, position) for position in (span.predicted, span.end - 1)
        )
        # A window may reach into the next file: then its last line is told of that file.
        lines[file].add((first, last if file == last_file else first))
        if last_file != file:
            lines[last_file].add((last, last))
    return told(lines)


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
