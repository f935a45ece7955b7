"""Whether the sides of a corpus are in the languages they should be, told by how often each piece occurs on them.

A side's lead is by how many nats a piece it is likelier as the source of another corpus than as its target. From which
lead on it means something was chosen on real text; that exchanged sides are always found there, and others never taken
for it, is a test (tests/data/test_languages.py; how many pairs were tried is in RESULTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer.config import UserError
from transformer.data.tokens import TokenStore

_COUNTED = 1_000_000  # pieces of a side that are looked at, taken evenly
_CLEAR, _CHANCE = 0.1, 1.0  # a lead means something from here on; and from this much more, over the root of the pieces


class Named(NamedTuple):
    """A corpus and what it is called."""

    name: str
    tokens: TokenStore


def doubts(train: Sequence[Named], dev: Named | None) -> list[str]:
    """What seems wrong with the languages of a run's text, a line for each corpus.

    Raises `UserError`, naming the corpus, where source and target are exchanged in all of the training text, as against
    the development set; and where all of it is the same on both sides, but the development set is not. A corpus that is
    exchanged among others, which may be meant, is told; without a development set as against the largest one. Where
    sides can hardly be told apart, as in copying or reversing, nothing is said of their languages.
    """
    known = dev or max(train, key=lambda corpus: len(corpus.tokens))
    if dev and _copied(dev) <= 0.5 and all(_copied(corpus) == 1 for corpus in train):
        raise UserError(
            f"{train[0].name}: source and target are the same text in all {train[0].tokens.same:,} pairs, unlike in "
            f"{dev.name}; give its translations as target"
        )
    lines, exchanged = [], []
    for corpus in train if dev else [corpus for corpus in train if corpus is not known]:
        # The larger one knows more of its languages.
        larger, smaller = sorted((known.tokens, corpus.tokens), key=_pieces, reverse=True)
        if _reads_like(larger, smaller) == ["target", "source"]:
            exchanged.append(
                f"{corpus.name}: its source reads like the target of {known.name}, and its target like the source "
                "there; exchange the two in one of them"
            )
            continue
        source, target = _reads_like(known.tokens, corpus.tokens)
        if source == target != "" and _copied(corpus) <= 0.5:
            lines.append(f"{corpus.name}: its source and its target both read like the {source} of {known.name}")
    if dev and len(exchanged) == len(train):
        raise UserError(exchanged[0])
    lines += [f"{line}, unless both directions are meant" for line in exchanged]
    for corpus in (*train, *([dev] if dev else [])):
        if _copied(corpus) > 0.5:
            lines.append(
                f"{corpus.name}: {corpus.tokens.same:,} of {len(corpus.tokens):,} pairs are the same text on both sides"
            )
    return lines


def _copied(corpus: Named) -> float:
    """Which share of its pairs, but for those with a blank side, are the same text on both sides."""
    tokens = corpus.tokens
    whole = int(((tokens.source_lengths > 0) & (tokens.target_lengths > 0)).sum())
    return tokens.same / whole if whole else 0.0


def _pieces(tokens: TokenStore) -> int:
    return min(len(tokens.source_tokens), len(tokens.target_tokens))


def _reads_like(known: TokenStore, text: TokenStore) -> list[str]:
    """For source and target of `text`: which side of `known` it clearly reads like, "source" or "target", else ""."""
    # As many pieces of either side: of two samples of one language the larger one has seen more.
    n = min(_pieces(known), _COUNTED)
    sides = [_evenly_spaced(side, n) for side in (known.source_tokens, known.target_tokens)]
    text_sides = [_evenly_spaced(side, min(len(side), _COUNTED)) for side in (text.source_tokens, text.target_tokens)]
    size = 1 + max((int(side.max()) for side in (*sides, *text_sides) if len(side)), default=0)
    as_source, as_target = (np.log1p(np.bincount(side, minlength=size)) for side in sides)
    clear = _CLEAR + _CHANCE / math.sqrt(max(min(n, *map(len, text_sides)), 1))
    leads = [float((as_source - as_target)[side].mean()) if len(side) else 0.0 for side in text_sides]
    return ["source" if lead > clear else "target" if lead < -clear else "" for lead in leads]


def _evenly_spaced(tokens: np.ndarray, n: int) -> np.ndarray:
    """n of the tokens, from all of the text."""
    return tokens[np.linspace(0, max(len(tokens) - 1, 0), n).astype(np.int64)]
