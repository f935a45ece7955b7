"""Sentences with their trees as training rows: pieces, symbols and tags."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.config import EOS, UserError
from transformer.data.batching import Batch, Batches
from transformer.data.framing import Row, frame_words
from transformer.data.linearised import Symbols
from transformer.data.trees import Tree, read_trees, spoken
from transformer.data.wordpiece import EncoderVocabulary

_TREE = "(S (NP (NN time)) (VP (VBZ flies)))"
_OUTLIERS = 0.05  # a sentence has about half as many pieces as its tree has symbols


class Sentence(NamedTuple):
    """A sentence and its gold tree."""

    tree: Tree
    words: tuple[str, ...]
    tags: tuple[str, ...]
    file: int
    """Index of the file among those that were read."""
    line: int
    """Number of its first line, from 1."""


class Treebank(NamedTuple):
    """The trees of files."""

    name: str
    paths: tuple[str, ...]
    sentences: Sequence[Sentence]
    unusable: Sequence[str]
    """For each tree that can't be used: file, line and reason."""

    def sha256(self) -> str:
        """Hex sha256 of all trees."""
        return hashlib.sha256("\n".join(str(one.tree) for one in self.sentences).encode()).hexdigest()


def read(paths: Sequence[str], most: int | None = None) -> Treebank:
    """The trees of files, in order; with `most`, this many of them, drawn from a fixed seed.

    Raises `UserError` for a file without trees, and if none can be used.
    """
    sentences, unusable = [], []
    for number, path in enumerate(paths):
        trees = read_trees(path)
        if not trees.found and not trees.unusable:
            raise UserError(f"{path}: holds no tree; leave it out, or give trees in brackets, such as {_TREE}")
        unusable += trees.unusable
        sentences += [sentence(tree, number, line) for tree, line in trees.found]
    if not sentences:
        raise UserError(f"{', '.join(paths)}: holds no tree that can be used; {unusable[0]}")
    if most is not None and most < len(sentences):
        drawn = np.random.default_rng(0).permutation(len(sentences))[:most]
        sentences = [sentences[i] for i in np.sort(drawn)]
    return Treebank(", ".join(Path(path).name for path in paths), tuple(paths), sentences, unusable)


def sentence(tree: Tree, file: int = 0, line: int = 1) -> Sentence:
    """A tree with its words and tags."""
    words = list(tree.words())
    return Sentence(tree, tuple(word.word for word in words), tuple(word.label for word in words), file, line)


def frame_sentences(vocabulary: EncoderVocabulary, words: Sequence[Sequence[str]], longest: int | None) -> list[Row]:
    """The row of each sentence: see `frame_words`. Words are encoded as text has them: ( for -LRB-."""
    return frame_words(vocabulary, [spoken(one) for one in words], longest)


class TreeRows:
    """Sentences as pieces and trees as symbols, as `Batches` reads them, without those that are too long."""

    def __init__(self, bank: Treebank, vocabulary: EncoderVocabulary, symbols: Symbols, context: int):
        """Raises `UserError` if no sentence is left."""
        rows = frame_sentences(vocabulary, [one.words for one in bank.sentences], None)
        ids = [symbols.encode(one.tree) for one in bank.sentences]
        self.paths, self.symbols = bank.paths, symbols
        fits = [len(row.ids) <= context and len(target or ()) < context for row, target in zip(rows, ids, strict=True)]
        self.too_long = fits.count(False)
        """Number of sentences that are left out: they, or their trees, are longer than `context`."""
        self.unknown = sum(target is None for target in ids)
        """Number of trees that are left out: a label is unknown."""
        kept = [i for i, (fit, target) in enumerate(zip(fits, ids, strict=True)) if fit and target is not None]
        if not kept:
            fix = "raise data.context" if self.too_long else "give trees with the labels of training"
            raise UserError(
                f"{bank.name}: no sentence is left of {len(bank.sentences)}: {self.too_long} are longer than "
                f"data.context = {context}, {self.unknown} have labels that training lacks; {fix}"
            )
        self.sentences = [bank.sentences[i] for i in kept]
        self._rows = [rows[i] for i in kept]
        # The last piece is the end, which `Batches` writes.
        self.source_tokens, self.source_offsets = _flat([row.ids[:-1] for row in self._rows])
        self.target_tokens, self.target_offsets = _flat([ids[i] for i in kept])
        self.source_lengths, self.target_lengths = np.diff(self.source_offsets), np.diff(self.target_offsets)
        self.ends = {"source": vocabulary.sep, "target": EOS}

    def __len__(self) -> int:
        return len(self.sentences)

    def sha256(self) -> str:
        """Hex sha256 of all pieces, symbols and tags."""
        digest = hashlib.sha256()
        for array in (self.source_tokens, self.source_offsets, self.target_tokens, self.target_offsets):
            digest.update(array.astype("<i8").data)
        digest.update("\n".join(" ".join(one.tags) for one in self.sentences).encode())
        return digest.hexdigest()

    def with_tags(self, numbers: Sequence[int], batch: Batch) -> Batch:
        """The batch of these sentences with "tag": int32 (rows, length), 1 + the tag at the first piece of each word,
        else 0. A tag that is unknown gets the number behind the known ones."""
        tags, known = np.zeros_like(batch["source"]), self.symbols.tag_ids
        for row, number in zip(tags, numbers, strict=False):
            row[self._rows[number].starts] = [1 + known.get(tag, len(known)) for tag in self.sentences[number].tags]
        return batch | {"tag": tags}


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists one after the other, and where each begins; the last number is where the last ends."""
    offsets = np.cumsum([0, *map(len, lists)])
    return np.concatenate([np.asarray(one, np.int32) for one in lists]), offsets


class TreeBatches(Batches):
    """`Batches` with a third array, "tag" (see `TreeRows.with_tags`)."""

    def __init__(self, rows: TreeRows, *, batch_tokens: int, accumulate: int, context: int, buckets: int, seed: int):
        self._sentences = rows
        sizes = {"batch_tokens": batch_tokens, "accumulate": accumulate, "max_length": context, "n_buckets": buckets}
        super().__init__([rows], **sizes, max_ratio=math.inf, outliers=_OUTLIERS, seed=seed)
        self.shapes = tuple(map(_with_tags, self.shapes))

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each array in the batch of update `step`."""
        return _with_tags(super().shape(step))

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of `batches[step]`, without reading the others. Rows beyond the last are PAD."""
        batch = super().read(step, begin, end)
        return self._sentences.with_tags(self.lines(step)[begin:end, 1].tolist(), batch)

    def told(self, step: int) -> str:
        """Files and line numbers (from 1) of the sentences in the batch of update `step`: "a.mrg:3,9; b.mrg:1"."""
        lines: dict[int, list[int]] = {}
        for number in self.lines(step)[:, 1].tolist():
            one = self._sentences.sentences[number]
            lines.setdefault(one.file, []).append(one.line)
        files = sorted(lines.items())
        return "; ".join(f"{self._sentences.paths[file]}:{','.join(map(str, sorted(of)))}" for file, of in files)


def _with_tags(shape: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return shape | {"tag": shape["source"]}
