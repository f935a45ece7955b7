"""Translations that begin with a given text (a forced prefix), which may end inside a word.

The tokenizer cuts half a word into other pieces than the whole word, and a space belongs to the word after it. So the
pieces of a prefix may be a sequence that never occurs in training. Therefore the search is constrained to the bytes of
the prefix, not to its pieces (token healing). At each byte offset into the prefix, these pieces may follow:

- the pieces into which the tokenizer cuts the prefix;
- at its end, also pieces that go beyond it, and the pieces that lead to them;
- everywhere, other pieces that spell the same bytes, if the model ranks them high.

This file prepares tables with a row for each byte offset; `constraints.py` reads them at each step. Shapes: B
sentences, O offsets, K pieces that may follow at an offset, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transformer.inference.constraints import Spelling
from transformer.inference.engine import size

if TYPE_CHECKING:
    from transformer.data.tokenizer import Cut, Tokenizer

_SPACE = "\u2581".encode()
_UNKNOWN = b"\xff"  # a byte that never occurs in UTF-8
_NEVER = 1 << 20  # more pieces than any output has


class Prefix(NamedTuple):
    """A text that a translation is to begin with."""

    text: str
    """The cleaned text."""
    spelt: bytes
    """The bytes that its pieces spell."""
    ends: int
    """The offset from which on the translation may end: the end of the text, without a space there."""
    pieces: list[int]
    """The pieces into which the tokenizer cuts it."""
    sure: frozenset[tuple[int, int]]
    """(offset, piece): pieces that may always follow at an offset, even if the model does not rank them high."""
    fewest: list[int]
    """For each offset, the fewest pieces from there until the translation may end."""


class Prefixes:
    """The pieces of a tokenizer, sorted by the bytes that they spell."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        spelling = tokenizer.spelling
        self._ids: dict[bytes, list[int]] = {}
        for id, spelt in enumerate(spelling):
            if spelt:
                self._ids.setdefault(spelt, []).append(id)
        self._sorted = sorted(spelt for spelt in self._ids if spelt != _UNKNOWN)
        rank = {spelt: i for i, spelt in enumerate(self._sorted)}
        self.spelling = Spelling(
            np.array([rank.get(spelt, -1) for spelt in spelling], np.int32),
            np.array([len(spelt) for spelt in spelling], np.int32),
        )
        self._longest = max([1, *map(len, self._sorted)])
        # K is the same for all prefixes, so that one compiled program serves them all.
        self._max_pieces = max([1, *(sum(1 for _ in self._within(spelt)) for spelt in self._ids)])

    def of(
        self, texts: Sequence[str], check: Callable[[Sequence[Sequence[int]]], None] = lambda pieces: None
    ) -> list[Prefix]:
        """Texts as prefixes; a blank text demands nothing. `check` gets the pieces of all, early, and may raise."""
        texts = [self._tokenizer.prefix(text) if text.strip() else "" for text in texts]
        cuts = self._tokenizer.cut(texts)
        check([cut.pieces for cut in cuts])
        beginnings_of = [self._beginnings(text) for text in texts]
        heads = iter(self._tokenizer.cut([part for beginnings in beginnings_of for part in beginnings]))
        return [
            self._prefix(text, cut, [next(heads) for _ in beginnings])
            for text, cut, beginnings in zip(texts, cuts, beginnings_of, strict=True)
        ]

    def _beginnings(self, text: str) -> list[str]:
        """The text cut off at each character of its last word, at most the length of a piece before the end."""
        spaces = [i for i, c in enumerate(text) if c.isspace()]
        start = max(len(text) - self._longest, spaces[-1] if spaces else 0, 0)
        return [text[:i] for i in range(start, len(text))]

    def _prefix(self, text: str, cut: Cut, heads: Sequence[Cut]) -> Prefix:
        spelt = b"".join(cut.spelt)
        ends = len(spelt)
        if self._tokenizer.ends_in_space(text):
            if spelt.endswith(_SPACE):
                ends -= len(_SPACE)
            else:  # a normalisation rule of this tokenizer removed the space
                spelt += _SPACE
        sure = set(_offsets(cut))
        for head in heads:
            low, high = self._beyond(spelt[len(b"".join(head.spelt)) :])
            if low < high and spelt.startswith(b"".join(head.spelt)):
                sure |= _offsets(head)
        return Prefix(text, spelt, ends, cut.pieces, frozenset(sure), self._fewest(spelt, ends))

    def _fewest(self, spelt: bytes, ends: int) -> list[int]:
        fewest = [_NEVER] * ends + [0] * (len(spelt) + 1 - ends)
        for offset in reversed(range(ends)):
            rest = self._reach(spelt, offset)
            low, high = self._beyond(rest)
            ways = [1 + fewest[offset + n] for _, n in self._within(rest)]
            fewest[offset] = min([*ways, 1] if low < high else [*ways, _NEVER])
        return fewest

    def _reach(self, spelt: bytes, offset: int) -> bytes:
        """The bytes at an offset, one more than the longest piece has: no piece begins with all of them."""
        return spelt[offset : offset + self._longest + 1]

    def _within(self, rest: bytes) -> Iterator[tuple[int, int]]:
        """(piece, number of bytes) for each piece that spells the beginning of `rest`, or all of it."""
        for n in range(1, len(rest) + 1):
            spelt = rest[:n]
            for id in self._ids.get(spelt, ()):
                yield id, n
            at = bisect.bisect_left(self._sorted, spelt)
            if at == len(self._sorted) or not self._sorted[at].startswith(spelt):
                return

    def _beyond(self, rest: bytes) -> tuple[int, int]:
        """The range of ranks (begin, end) of the pieces that begin with `rest`."""
        # No piece contains the byte 0xFF.
        return bisect.bisect_left(self._sorted, rest), bisect.bisect_left(self._sorted, rest + _UNKNOWN)

    def tables(self, rows: int, longest: int) -> dict[str, np.ndarray]:
        """Tables for `rows` prefixes of at most `longest` bytes. They demand nothing until `fill` is called."""
        B, O, K = rows, size(longest + 1), self._max_pieces  # noqa: E741
        return {
            "pieces_BOK": np.full((B, O, K), -1, np.int32),  # pieces inside the prefix
            "fewest_BOK": np.full((B, O, K), _NEVER, np.int32),  # the fewest pieces to its end after each
            "sure_BOK": np.zeros((B, O, K), bool),
            "beyond_BO2": np.zeros((B, O, 2), np.int32),  # range of ranks of the pieces that reach its end
            "ends_B": np.zeros(B, np.int32),
            "length_B": np.zeros(B, np.int32),
        }

    def fill(self, tables: dict[str, Any], row: int, prefix: Prefix) -> None:
        """Write a prefix into a row of `tables`."""
        tables["ends_B"][row], tables["length_B"][row] = prefix.ends, len(prefix.spelt)
        for offset in range(len(prefix.spelt)):
            rest = self._reach(prefix.spelt, offset)
            tables["beyond_BO2"][row, offset] = self._beyond(rest)
            within = list(self._within(rest))
            sure = [(offset, id) in prefix.sure for id, _ in within]
            tables["pieces_BOK"][row, offset, : len(within)] = [id for id, _ in within]
            tables["fewest_BOK"][row, offset, : len(within)] = [prefix.fewest[offset + n] for _, n in within]
            # At an offset that only choices of the model lead to, all pieces stay allowed.
            tables["sure_BOK"][row, offset, : len(within)] = sure if any(sure) else True

    def limit(self, limit: int, prefix: Prefix) -> int:
        """The most pieces of a translation: `limit`, or more if the prefix alone needs more."""
        return limit if prefix.fewest[0] <= limit else len(prefix.pieces)

    def kept(self, text: str, prefix: Prefix) -> str:
        """The translation, with the characters of its prefix that no piece can spell put back."""
        if _UNKNOWN not in prefix.spelt:
            return text
        (shown,) = self._tokenizer.decode([prefix.pieces])
        return prefix.text + text.removeprefix(shown)


def _offsets(cut: Cut) -> set[tuple[int, int]]:
    """(offset, piece) for each piece."""
    offsets, offset = set(), 0
    for piece, spelt in zip(cut.pieces, cut.spelt, strict=True):
        offsets.add((offset, piece))
        offset += len(spelt)
    return offsets
