"""Texts as rows of an encoder: special pieces at their ends, and cut to the longest row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from transformer.data.wordpiece import EncoderVocabulary


class Row(NamedTuple):
    """A text, or a pair of texts, as an encoder reads it."""

    ids: list[int]
    """[CLS] first text [SEP], or [CLS] first text [SEP] second text [SEP]."""
    first: int
    """Number of positions of the first text, [CLS] and [SEP] included."""
    starts: list[int]
    """Of tagged words: the position of the first piece of each word that fits into the row."""
    cut: int
    """Number of pieces, or of tagged words, that did not fit."""

    @property
    def part(self) -> list[int]:
        """For each position, 1 in the first text and 2 in the second."""
        return [1] * self.first + [2] * (len(self.ids) - self.first)


def frame(vocabulary: EncoderVocabulary, texts: Sequence[Sequence[str]], longest: int | None) -> list[Row]:
    """The row of each text, or pair of texts: of one string, or two.

    Rows have at most `longest` positions. What is too long loses its end; of a pair, the longer text loses it first, as
    in BERT.
    """
    encoded = iter(vocabulary.encode_lines(list(itertools.chain(*texts))))
    return [row_of(vocabulary, list(itertools.islice(encoded, len(parts))), longest) for parts in texts]


def row_of(vocabulary: EncoderVocabulary, parts: Sequence[list[int]], longest: int | None) -> Row:
    """The row of the pieces of one text, or of two. See `frame`."""
    first, second = parts[0], parts[1] if len(parts) > 1 else None
    room = math.inf if longest is None else longest - 1 - len(parts)
    length, other = len(first), len(second or ())
    cut = int(max(0, length + other - room))
    # Remove one piece after the other from the longer text; from the second, if both are of one length.
    of_longer = min(cut, abs(length - other))
    rest = cut - of_longer
    length, other = (length - of_longer, other) if length > other else (length, other - of_longer)
    length, other = length - rest // 2, other - (rest + 1) // 2
    ids = [vocabulary.cls, *first[:length], vocabulary.sep]
    if second is not None:
        ids += [*second[:other], vocabulary.sep]
    return Row(ids, length + 2, [], cut)


def frame_words(vocabulary: EncoderVocabulary, texts: Sequence[Sequence[str]], longest: int | None) -> list[Row]:
    """The row of each list of words, with the place of each word in it. Words that do not fit whole are cut off. But
    the first one always begins the row, if need be without its last pieces.

    A word without pieces, such as one of control characters, becomes the unknown piece.
    """
    encoded = iter(vocabulary.encode_lines(list(itertools.chain(*texts))))
    rows = []
    for words in texts:
        ids, starts, full = [vocabulary.cls], [], False
        for pieces in itertools.islice(encoded, len(words)):
            pieces = pieces or [vocabulary.unk]
            if longest is not None and not starts:
                pieces = pieces[: longest - 2]
            full = full or (longest is not None and len(ids) + len(pieces) > longest - 1)
            if not full:
                starts.append(len(ids))
                ids += pieces
        rows.append(Row([*ids, vocabulary.sep], len(ids) + 1, starts, len(words) - len(starts)))
    return rows
