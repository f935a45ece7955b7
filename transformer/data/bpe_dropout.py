"""BPE dropout (Provilkov et al. 2020): cut words into pieces anew, leaving out merges at random.

A sentence's pieces are a function of (seed, epoch, pair, side) alone, so a resumed run reads the same ones.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable, Sequence

import numpy as np

from transformer.config import SPECIALS, UserError
from transformer.data.tokenizer import SPACE, Tokenizer
from transformer.data.tokens import TokenStore

_SAMPLE = 500  # sentences that are cut anew to see how much longer they become, or that the merges are BPE's
_NONE = (2**31, 0)  # in the place of a merge's rank and id
_SLACK, _MORE = 1.1, 2  # planned lengths: this times the mean growth, and so many pieces more


class BpeDropout:
    """Cuts sentences of a token store anew, with a rate at which each merge is left out."""

    def __init__(self, tokenizer: Tokenizer, rate: float, seed: int):
        self.rate, self._seed = rate, seed
        self._symbols = [_symbols(tokenizer, id) for id in range(tokenizer.vocab_size)]
        self._ids = {symbols[0]: id for id, symbols in enumerate(self._symbols) if len(symbols) == 1}
        merged = sorted((-tokenizer.score(id), id) for id, symbols in enumerate(self._symbols) if len(symbols) > 1)
        self._merges = {tokenizer.piece(id): (rank, id) for rank, (_, id) in enumerate(merged)}

    def __call__(self, ids: Sequence[int], limit: int, *where: int) -> list[int]:
        """The pieces of a sentence, at most `limit`: words that would exceed it stay whole. `where`: epoch, pair and
        side, as numbers that random ones follow from."""
        rng, room, found = _random(self._seed, *where), limit - len(ids), []
        for word in self._split(ids):
            pieces = self._cut(word, rng)
            if len(pieces) - len(word) > room:
                pieces = word
            room -= len(pieces) - len(word)
            found += pieces
        return found

    def _split(self, ids: Iterable[int]) -> Iterable[list[int]]:
        """The pieces of a sentence, word by word: a word begins with a space."""
        word: list[int] = []
        for id in ids:
            if word and self._symbols[id][0] == SPACE:
                yield word
                word = []
            word.append(int(id))
        if word:
            yield word

    def _cut(self, word: Sequence[int], rng: random.Random) -> list[int]:
        """Merge the characters of a word, the most frequent pair first. Each step leaves each pair out at random."""
        symbols = [symbol for id in word for symbol in self._symbols[id]]
        found = [self._ids.get(symbol) for symbol in symbols]
        if None in found:  # a piece has a character that is no piece itself
            return list(word)
        merge, rate, draw = self._merges.get, self.rate, rng.random
        merges = [merge(a + b, _NONE) for a, b in itertools.pairwise(symbols)]  # of each two neighbours
        while merges:
            best, at = _NONE, 0
            for i, one in enumerate(merges):
                if one < best and (not rate or draw() >= rate):
                    best, at = one, i
            if best is _NONE:
                break
            symbols[at : at + 2], found[at : at + 2] = [symbols[at] + symbols[at + 1]], [best[1]]
            del merges[at]
            if at > 0:
                merges[at - 1] = merge(symbols[at - 1] + symbols[at], _NONE)
            if at < len(merges):
                merges[at] = merge(symbols[at] + symbols[at + 1], _NONE)
        return found

    def check(self, store: TokenStore) -> None:
        """Raise `UserError` unless merging gives the pieces of the store: then the tokenizer is BPE."""
        without = copy.copy(self)
        without.rate = 0.0
        for i in range(min(_SAMPLE, len(store))):
            for ids in (store.source(i), store.target(i)):
                if without(ids, 2**31, 0) != ids.tolist():
                    raise UserError(
                        f"data.bpe_dropout = {self.rate}: the tokenizer's pieces are not those of BPE; give a BPE "
                        "model, or leave data.bpe_dropout out"
                    )

    def planned(self, store: TokenStore, side: str, most: int) -> np.ndarray:
        """The number of pieces to plan with for each sentence of a side, EOS included: int32 (pairs,). At most `most`,
        except for sentences that are longer anyway."""
        read, lengths = getattr(store, side), getattr(store, f"{side}_lengths")
        chosen = range(0, len(store), max(1, len(store) // _SAMPLE))
        before = sum(int(lengths[i]) for i in chosen)
        after = sum(len(self(read(i), 2**31, -1, i)) for i in chosen)
        growth = max(after / before if before else 1.0, 1.0)
        grown = np.ceil(lengths * growth * _SLACK).astype(np.int32) + _MORE
        return np.maximum(lengths, np.minimum(grown, most - 1)).astype(np.int32) + 1


def _symbols(tokenizer: Tokenizer, id: int) -> Sequence[str]:
    """The characters of a piece; a name for a byte or a special piece, which no merge has made."""
    text = tokenizer.piece(id)
    return tuple(text) if id >= len(SPECIALS) and text.encode() == tokenizer.spelling[id] else (f"<{id}>",)


def _random(*numbers: int) -> random.Random:
    """Random numbers that follow from some whole numbers of 64 bits."""
    return random.Random(sum((number & (2**64 - 1)) << 64 * i for i, number in enumerate(numbers)))
