"""Rows of sentences: pairs of texts of which the second follows the first or is drawn at random, as BERT was trained
on (create_pretraining_data.py), or rows filled with neighbouring sentences of one document.

Each row is a `Row`. `paired` and `filled` give rows of sentences; `sentence_rows` those of a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.config import PretrainConfig, UserError
from transformer.data.text_store import TextStore
from transformer.files import cached, compared

_FORMAT = 1  # part of the key: raise it when the same text gives other rows

NO_PAIR, IS_NEXT, RANDOM = 0, 1, 2
"""Values of `Row.next`."""


class Row(NamedTuple):
    """One or two texts that share a row. Text = the pieces of `tokens[begin:end]` of a store without the ids of line
    breaks, of which `skip` are left out and then `count` follow."""

    store: int
    """Index of the store."""
    next: int
    """`IS_NEXT` if the second text follows the first, `RANDOM` if it is drawn at random, else `NO_PAIR`."""
    begin: int
    end: int
    skip: int
    count: int
    second_begin: int = 0
    second_end: int = 0
    second_skip: int = 0
    second_count: int = 0
    """0 = there is no second text."""


class Sentences:
    """The sentences of a text store whose vocabulary has the id `sep` for a line break. Empty ones are left out."""

    def __init__(self, store: TextStore):
        breaks = np.flatnonzero(store.tokens == store.vocabulary.end)
        begins = np.sort(np.concatenate([store.offsets[:-1], breaks + 1]))
        ends = np.sort(np.concatenate([breaks, store.offsets[1:]]))
        kept = begins < ends
        self.begins, self.ends = begins[kept], ends[kept]
        """Sentence i has the pieces tokens[begins[i]:ends[i]]."""
        self.lengths: list[int] = (self.ends - self.begins).tolist()
        documents = np.searchsorted(store.offsets, self.begins, side="right")
        firsts = np.flatnonzero(np.diff(documents, prepend=-1))
        self.firsts: list[int] = [*firsts.tolist(), len(self.lengths)]
        """Document d has the sentences firsts[d] up to firsts[d + 1]."""

    def text(self, first: int, last: int, skip: int, count: int) -> tuple[int, int, int, int]:
        """The fields of a `Row` for a text of the sentences `first` up to `last`."""
        return int(self.begins[first]), int(self.ends[last - 1]), skip, count


class Pair(NamedTuple):
    """Two runs of sentences: from the first number up to the second."""

    next: int
    first: tuple[int, int]
    second: tuple[int, int]


def pairs(sentences: Sentences, most: int, *, short_share: float, rng: np.random.Generator) -> Iterator[Pair]:
    """Yield pairs of all documents; there must be two at least.

    A document is cut into chunks of at least `most` pieces or, for `short_share` of the documents, of a random number
    from 2 to `most`. The first sentences of a chunk, a random number of them, are the first text. Where they are all,
    and else with probability 1/2, the second text begins at a random sentence of a random other document, and the rest
    of the chunk begins the next one.
    """
    lengths, firsts = sentences.lengths, sentences.firsts
    for document in range(len(firsts) - 1):
        at, end = firsts[document], firsts[document + 1]
        target = int(rng.integers(2, most + 1)) if rng.random() < short_share else most
        while at < end:
            begin = at
            at = _long_enough(lengths, begin, end, target)
            middle = begin + (1 if at - begin == 1 else int(rng.integers(1, at - begin)))
            if at - begin > 1 and rng.random() >= 0.5:
                yield Pair(IS_NEXT, (begin, middle), (middle, at))
                continue
            other = _other_document(document, len(firsts) - 1, rng)
            start = int(rng.integers(firsts[other], firsts[other + 1]))
            needed = target - sum(lengths[begin:middle])
            yield Pair(RANDOM, (begin, middle), (start, _long_enough(lengths, start, firsts[other + 1], needed)))
            at = middle


def _long_enough(lengths: Sequence[int], begin: int, end: int, needed: int) -> int:
    """The end of the shortest run of sentences from `begin` that has `needed` pieces: one sentence at least, and not
    beyond `end`."""
    at, length = begin + 1, lengths[begin]
    while at < end and length < needed:
        length += lengths[at]
        at += 1
    return at


def _other_document(document: int, count: int, rng: np.random.Generator) -> int:
    other = document
    for _ in range(10):
        other = int(rng.integers(count))
        if other != document:
            break
    return other


def removed(first: int, second: int, most: int) -> tuple[int, int]:
    """How many pieces two texts of these lengths lose to have `most` together, if each piece is taken from the longer
    text, or from the second if they are equally long."""
    over = max(first + second - most, 0)
    alone = min(over, abs(first - second))  # taken from the longer one, until they are equally long
    rest = over - alone
    from_second = (rest + 1) // 2 + (alone if second > first else 0)
    return over - from_second, from_second


def paired(
    sentences: Sentences, context: int, *, store: int, short_share: float, rng: np.random.Generator
) -> Iterator[Row]:
    """Yield the rows of `pairs`. What is too long for a row with [CLS] and two [SEP] is cut, piece by piece, at the
    front or the back at random."""
    most = context - 3
    lengths = sentences.lengths
    for pair in pairs(sentences, most, short_share=short_share, rng=rng):
        sizes = [sum(lengths[slice(*run)]) for run in (pair.first, pair.second)]
        texts = []
        for run, size, lost in zip((pair.first, pair.second), sizes, removed(*sizes, most), strict=True):
            skip = int(rng.binomial(lost, 0.5)) if lost else 0
            texts += sentences.text(*run, skip, size - lost)
        yield Row(store, pair.next, *texts)


def filled(sentences: Sentences, context: int, *, store: int) -> Iterator[Row]:
    """Yield rows with as many whole sentences of one document as fit with [CLS] and [SEP]. A sentence that is too long
    for a row is cut into several."""
    most = context - 2
    for begin, end in zip(sentences.firsts, sentences.firsts[1:], strict=False):
        at = begin
        while at < end:
            first, length = at, sentences.lengths[at]
            at += 1
            while at < end and length + sentences.lengths[at] <= most:
                length += sentences.lengths[at]
                at += 1
            for skip in range(0, length, most):  # several only for a single sentence
                yield Row(store, NO_PAIR, *sentences.text(first, at, skip, min(most, length - skip)))


def holds_one_document(store: TextStore) -> bool:
    """Whether all sentences of a text are of one document, so that there are no pairs."""
    return len(Sentences(store).firsts) == 2


def sentence_rows(
    config: PretrainConfig, stores: Sequence[TextStore], *, seed: int, folder: Path | None = None, duplicates: int = 1
) -> np.ndarray:
    """The rows of a run: int64 (rows, fields of `Row`).

    `stores`: the text with documents, and the text without, if any. `duplicates`: how many times pairs are drawn; rows
    without pairs are repeated. `folder` keeps the rows. Raises `UserError` if pairs need more documents.
    """
    all_sentences = [Sentences(store) for store in stores]
    for store, sentences in zip(stores, all_sentences, strict=True):
        if not sentences.lengths:
            raise UserError(
                f"{store.source.name}: nothing is left of its text once it is normalised; give another file"
            )
    if config.next_sentence and len(all_sentences[0].firsts) < 3:
        text = stores[0].source
        part, raise_it = (" has a development share that", ", raise data.dev_share") if text.begin else ("", "")
        raise UserError(
            f"{text.name}:{part} holds a single document, but pairs of texts need two; separate documents by blank "
            f"lines, set data.document_lines{raise_it}, or set data.next_sentence to False"
        )

    def drawn() -> np.ndarray:
        rows: list[Row] = []
        for copy in range(duplicates):
            rng = np.random.default_rng(np.random.SeedSequence([seed, copy]))
            for number, sentences in enumerate(all_sentences):
                if config.next_sentence and number == 0:
                    rows += paired(sentences, config.context, store=0, short_share=config.short_share, rng=rng)
                else:
                    rows += filled(sentences, config.context, store=number)
        return np.array(rows, np.int64).reshape(-1, len(Row._fields))

    def write(new: Path) -> None:
        with compared(new / "rows.npy") as file:
            np.save(file, drawn(), allow_pickle=False)

    if folder is None:
        return drawn()
    depends_on = [_FORMAT, config.next_sentence, config.context, config.short_share, duplicates, seed]
    depends_on += [store.text for store in stores]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    return cached(
        folder / "pairs" / key,
        write,
        lambda path: np.asarray(np.load(path / "rows.npy", mmap_mode="r", allow_pickle=False)),
        "the rows of sentences",
    )
