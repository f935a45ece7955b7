"""Training batches of labelled texts: rows of similar length together, the same number of rows in each batch.

A batch has int32 arrays of shape (rows, length):

    text     the pieces of a row: see `framing.Row`
    part     1 in the first text, 2 in the second, 0 = padding
    label    see `Labels.ids`: of classes and numbers one for a row; of tags at the first piece of each word. 0 = none

The order is a pure function of (seed, epoch, step), so the step alone is enough to resume a run.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer.data.buckets import length_buckets
from transformer.data.framing import Row, frame, frame_words
from transformer.data.labelled import Example
from transformer.data.labels import Labels
from transformer.data.rows import Batch, told
from transformer.data.wordpiece import EncoderVocabulary

_POOL = 64  # batches that are sorted by length together


class LabelledRows:
    """Labelled examples as rows of pieces."""

    def __init__(
        self,
        examples: Sequence[Example],
        paths: Sequence[str],
        vocabulary: EncoderVocabulary,
        labels: Labels,
        context: int,
    ):
        """`paths`: the files of the examples. Raises `UserError` for a label that training has not seen."""
        self.examples, self.paths, self.vocabulary, self.labels = examples, paths, vocabulary, labels
        self.rows = framed(examples, vocabulary, labels, context)
        self.lengths = np.array([len(row.ids) for row in self.rows])
        """Number of positions of each row."""
        self.label_ids = [labels.ids(example, paths[example.file]) for example in examples]
        self.cut = sum(row.cut > 0 for row in self.rows)
        """Number of rows that do not hold their whole text."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int], count: int, length: int) -> Batch:
        """The arrays of these rows, padded to `length`, and padding up to `count` rows."""
        tags = self.labels.kind == "tags"
        text, part = np.full((count, length), self.vocabulary.pad, np.int32), np.zeros((count, length), np.int32)
        label = np.zeros((count, length if tags else 1), np.int32)
        for r, number in enumerate(rows):
            row, ids = self.rows[number], self.label_ids[number]
            text[r, : len(row.ids)], part[r, : len(row.ids)] = row.ids, row.part
            if tags:
                label[r, row.starts] = ids[: len(row.starts)]
            else:
                label[r] = ids
        return {"text": text, "part": part, "label": label}

    def sha256(self) -> str:
        """Hex sha256 of all pieces and labels."""
        digest = hashlib.sha256()
        for row, ids in zip(self.rows, self.label_ids, strict=True):
            digest.update(np.array([len(row.ids), row.first, *row.ids, *row.starts], "<i8").data)
            digest.update(ids.astype("<i4").data)
        return digest.hexdigest()


def framed(
    examples: Sequence[Example], vocabulary: EncoderVocabulary, labels: Labels, longest: int | None
) -> list[Row]:
    """The rows of examples, with or without labels."""
    if labels.kind == "tags":
        return frame_words(vocabulary, [example.text for example in examples], longest)
    texts = [[part for part in (example.text, example.second) if part is not None] for example in examples]
    return frame(vocabulary, texts, longest)


class _Plan(NamedTuple):
    """The batches of an epoch."""

    rows: list[np.ndarray]
    buckets: list[int]
    """The index of the shape of each batch."""


class LabelledBatches:
    """An endless random-access sequence of training batches (see `training.task.Batches`).

    An epoch has every row once. Its rows are shuffled; of each 64 batches they are sorted by length and cut into
    batches, which are then shuffled. So all batches but one have the same number of rows, and little padding.
    """

    def __init__(self, rows: LabelledRows, *, batch_rows: int, accumulate: int = 1, buckets: int, seed: int):
        """`batch_rows`: rows of a batch, a multiple of `accumulate`. `buckets`: the most shapes."""
        self.rows, self._seed = rows, seed
        self._size = min(batch_rows, -(-len(rows) // accumulate) * accumulate)
        self.batches_per_epoch = -(-len(rows) // self._size)
        """Number of updates in an epoch; the same for every epoch."""
        context = int(rows.lengths.max())
        self._ends = np.minimum(length_buckets(rows.lengths, rows.lengths, buckets), context)
        self.shapes = tuple(self._shape(int(end)) for end in self._ends)
        """All shapes of the batches, the shortest first."""
        self._lock = threading.Lock()
        self._plans: dict[int, _Plan] = {}

    def _shape(self, length: int) -> dict[str, tuple[int, int]]:
        shape = (self._size, length)
        return {"text": shape, "part": shape, "label": shape if self.rows.labels.kind == "tags" else (self._size, 1)}

    @property
    def padding(self) -> float:
        """Share of padding among all positions of the first epoch."""
        positions = self._size * sum(int(self._ends[bucket]) for bucket in self._plan(0).buckets)
        return 1 - int(self.rows.lengths.sum()) / positions

    def digest(self) -> str:
        """Hex sha256 of all that determines the batches, except the pieces."""
        described = f"{self._seed} {self.shapes} {self.batches_per_epoch} {_POOL}"
        return hashlib.sha256(described.encode() + self.rows.lengths.astype("<i8").tobytes()).hexdigest()

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of update `step`, and its index within the epoch; both count from 0."""
        return divmod(step, self.batches_per_epoch)

    def _plan(self, epoch: int) -> _Plan:
        with self._lock:  # Grain's threads may need the same plan at the same time
            if epoch not in self._plans:
                self._plans = {e: p for e, p in self._plans.items() if e == max(self._plans)}
                self._plans[epoch] = self._drawn(np.random.default_rng(np.random.SeedSequence([self._seed, epoch])))
            return self._plans[epoch]

    def _drawn(self, rng: np.random.Generator) -> _Plan:
        order, lengths, batches = rng.permutation(len(self.rows)), self.rows.lengths, []
        for begin in range(0, len(order), _POOL * self._size):
            pool = order[begin : begin + _POOL * self._size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + self._size] for i in range(0, len(pool), self._size)]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        longest = [int(lengths[batch].max()) for batch in shuffled]
        return _Plan(shuffled, np.searchsorted(self._ends, longest).tolist())

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each array in the batch of update `step`."""
        epoch, index = self.locate(step)
        return self.shapes[self._plan(epoch).buckets[index]]

    def __getitem__(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return self.read(step, 0, self._size)

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of `batches[step]`, without reading the others. Rows beyond the last are padding."""
        epoch, index = self.locate(step)
        plan = self._plan(epoch)
        return self.rows.batch(plan.rows[index][begin:end].tolist(), end - begin, int(self._ends[plan.buckets[index]]))

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the texts in the batch of update `step`: "a.tsv:3-9,70; b.tsv:1"."""
        epoch, index = self.locate(step)
        return told(_lines(self.rows, self._plan(epoch).rows[index].tolist()))


def _lines(rows: LabelledRows, numbers: Sequence[int]) -> dict[str, set[tuple[int, int]]]:
    lines: dict[str, set[tuple[int, int]]] = {}
    for number in numbers:
        example = rows.examples[number]
        lines.setdefault(rows.paths[example.file], set()).add((example.line, example.line))
    return lines


def split(examples: Sequence[Example], share: float, kind: str) -> tuple[list[Example], list[Example]]:
    """Training and development examples: `share` of all, at least one, drawn from a fixed seed. Both keep their order.

    An example goes back to training if it has a class or a tag (`kind`) that no training example has. So a rare one may
    be missing in the development set, but is always learnt. Returns no development examples if `share` is 0.
    """
    count = min(max(1, round(share * len(examples))), len(examples) - 1) if share else 0
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    dev = set(order[:count])

    def names(i: int) -> set[str]:
        label = examples[i].label
        return set() if kind == "regression" else {label} if isinstance(label, str) else {*label}

    known = set().union(*map(names, order[count:]))
    for i in order[:count]:
        if not names(i) <= known:
            dev.remove(i)
            known |= names(i)
    return (
        [example for i, example in enumerate(examples) if i not in dev],
        [example for i, example in enumerate(examples) if i in dev],
    )
