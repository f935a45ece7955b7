"""Rows of masked pieces, as BERT is trained on them (create_pretraining_data.py).

A batch has int32 arrays of shape (rows, length):

    text     the pieces, some of them masked: [CLS] first text [SEP], or [CLS] first text [SEP] second text [SEP]
    part     1 in the first text, 2 in the second, 0 = padding
    place    the positions of the pieces to be predicted, ascending; 0 = none ([CLS] is never predicted)
    label    the piece at each of these places
    next     only with data.next_sentence: 1 = the second text is the next one, 2 = it is not, 0 = there is none

What is masked is a pure function of (seed, epoch, row).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from transformer.config import PretrainConfig
from transformer.data.rows import Batch, told
from transformer.data.sentence_pairs import Row, sentence_rows
from transformer.data.text_store import TextStore
from transformer.data.wordpiece import EncoderVocabulary


def most_masked(config: PretrainConfig, length: int) -> int:
    """Number of pieces to be predicted in a row of this length, [CLS] and [SEP] included."""
    return min(config.max_masked, max(1, round(config.mask_share * length)))


def mask(
    ids: np.ndarray,
    candidates: np.ndarray,
    count: int,
    vocabulary: EncoderVocabulary,
    rng: np.random.Generator,
    *,
    whole_words: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask `count` pieces of `ids`, in place. Returns their places, ascending, and what stood there.

    `candidates`: the positions that may be masked, ascending. 80 % of the pieces become the mask, 10 % stay, and 10 %
    become any piece of the vocabulary. With `whole_words`, all pieces of a word are masked or none, so there may be
    fewer than `count`.
    """
    if whole_words:
        begins = vocabulary.starts[ids[candidates]] | (np.diff(candidates, prepend=-2) > 1)
        words = np.split(candidates, np.flatnonzero(begins)[1:])
        chosen: list[int] = []
        for word in rng.permutation(len(words)):
            if len(chosen) + len(words[word]) <= count:
                chosen += words[word].tolist()
        places = np.array(chosen, np.int64)
    else:
        places = rng.permutation(candidates)[:count]
    places = np.sort(places)
    labels = ids[places]
    drawn = rng.random(len(places))
    any_piece = rng.integers(0, vocabulary.size, len(places))
    ids[places] = np.select([drawn < 0.8, drawn < 0.9], [vocabulary.mask, labels], any_piece)
    return places, labels


class MaskedRows:
    """The rows of an epoch (see `rows.Rows`)."""

    def __init__(
        self,
        config: PretrainConfig,
        stores: Sequence[TextStore],
        *,
        seed: int,
        folder: Path | None = None,
        duplicates: int = 1,
    ):
        """Arguments and errors are those of `sentence_rows`."""
        self.config, self.stores, self._seed, self.context = config, stores, seed, config.context
        self.vocabulary: EncoderVocabulary = stores[0].vocabulary
        self._rows = sentence_rows(config, stores, seed=seed, folder=folder, duplicates=duplicates)
        self.count = len(self._rows)
        most = most_masked(config, self.context)
        self.lengths = {"text": self.context, "part": self.context, "place": most, "label": most}
        if config.next_sentence:
            self.lengths["next"] = 1
        first, second = (self._rows[:, Row._fields.index(name)] for name in ("count", "second_count"))
        self.used = int((first + second + np.where(second > 0, 3, 2)).sum())

    def draw(self, rng: np.random.Generator) -> int:
        """The number of the masks of an epoch; 0 if they are the same in all."""
        return 0 if self.config.static_masks else int(rng.integers(1, 2**32))

    def batch(self, rows: Sequence[int], drawn: int, count: int) -> Batch:
        batch = {name: np.zeros((count, length), np.int32) for name, length in self.lengths.items()}
        for r, number in enumerate(rows):
            row = Row(*self._rows[number].tolist())
            ids, part = self._framed(row)
            n = len(ids)
            rng = np.random.default_rng(np.random.SeedSequence([self._seed, drawn, number]))
            ends = np.flatnonzero(np.diff(part, append=0))  # the places of [SEP]
            candidates = np.setdiff1d(np.arange(1, n), ends, assume_unique=True)
            places, labels = mask(
                *(ids, candidates, most_masked(self.config, n), self.vocabulary, rng),
                whole_words=self.config.whole_words,
            )
            batch["text"][r, :n], batch["part"][r, :n] = ids, part
            batch["place"][r, : len(places)], batch["label"][r, : len(places)] = places, labels
            if "next" in batch:
                batch["next"][r] = row.next
        return batch

    def _framed(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of a row with [CLS] and [SEP], and the number of the text that each belongs to."""
        v = self.vocabulary
        first = [[v.cls], self._text(row.store, row.begin, row.end, row.skip, row.count), [v.sep]]
        second = []
        if row.second_count:
            text = self._text(row.store, row.second_begin, row.second_end, row.second_skip, row.second_count)
            second = [text, [v.sep]]
        part = np.repeat([1, 2], [row.count + 2, row.second_count + 1 if second else 0])
        return np.concatenate([*first, *second]).astype(np.int32), part

    def _text(self, store: int, begin: int, end: int, skip: int, count: int) -> np.ndarray:
        ids = self.stores[store].tokens[begin:end]
        return ids[ids != self.vocabulary.sep][skip : skip + count].astype(np.int32)

    def lines(self, rows: Sequence[int], drawn: int) -> str:
        lines: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for number in rows:
            row = Row(*self._rows[number].tolist())
            texts = [(row.begin, row.end), (row.second_begin, row.second_end)]
            for begin, end in texts[: 2 if row.second_count else 1]:
                (file, first), (_, last) = (self.stores[row.store].line(at) for at in (begin, end - 1))
                lines[file].add((first, last))
        return told(lines)

    def digest(self) -> str:
        c = self.config
        described = [self._seed, self.lengths, c.mask_share, c.max_masked, c.whole_words, c.static_masks]
        digest = hashlib.sha256(repr(described).encode())
        digest.update(np.ascontiguousarray(self._rows, "<i8").data)
        return digest.hexdigest()


def in_order(rows: MaskedRows, size: int) -> Iterator[Batch]:
    """Yield batches of `size` rows, all rows once in their order, with the same masks each time."""
    for begin in range(0, rows.count, size):
        yield rows.batch(range(begin, min(begin + size, rows.count)), 0, size)
