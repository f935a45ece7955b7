"""Check that the sides of a corpus are in the right languages, by the frequency of each piece on them.

The lead of a side is the mean log-likelihood ratio, in nats per piece, of the side as the source of another corpus and
as its target. The threshold from which a lead counts was chosen on real text. A test checks on real text that exchanged
sides are always found and that others never are (tests/data/test_languages.py; RESULTS.md has the number of pairs
of corpora).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer.config import UserError
from transformer.data.tokens import TokenStore

_COUNTED = 1_000_000  # pieces of a side to count at most, taken evenly from the text
_CLEAR, _CHANCE = 0.1, 1.0  # a lead counts from _CLEAR + _CHANCE / sqrt(pieces) nats on


class Named(NamedTuple):
    """A token store, and the name of its corpus in messages."""

    name: str
    tokens: TokenStore


class Sides(NamedTuple):
    """The pieces of a parallel text, flat, as a `TokenStore` has them."""

    source_tokens: np.ndarray
    target_tokens: np.ndarray


def exchanged(name: str, text: Sides | TokenStore, known_name: str, known: Sides | TokenStore) -> str | None:
    """The doubt that source and target of a text are exchanged, compared with another text; else None."""
    # The larger text gives better statistics, so it is the reference.
    larger, smaller = sorted((known, text), key=_pieces, reverse=True)
    if _reads_like(larger, smaller) != ["target", "source"]:
        return None
    return (
        f"{name}: its source reads like the target of {known_name}, and its target like the source there; exchange "
        "source and target in one of them"
    )


def doubts(train: Sequence[Named], dev: Named | None) -> list[str]:
    """Warnings about the languages of a run's text, one line for each corpus in doubt.

    Each corpus is compared with the development set, or without one with the largest corpus. Raises `UserError` with
    the name of the corpus if source and target are exchanged in all of the training text; and if all of it has the same
    text on both sides, unlike the development set. If only some corpora are exchanged, which may be intended, this is a
    warning. If the two sides are hardly different, as in copying or reversing, there is no warning about languages.
    """
    known = dev or max(train, key=lambda corpus: len(corpus.tokens))
    if dev and _copied(dev) <= 0.5 and all(_copied(corpus) == 1 for corpus in train):
        raise UserError(
            f"{train[0].name}: source and target are the same text in all {train[0].tokens.same:,} pairs, unlike in "
            f"{dev.name}; give its translations as target"
        )
    lines, reversed_ = [], []
    for corpus in train if dev else [corpus for corpus in train if corpus is not known]:
        if doubt := exchanged(corpus.name, corpus.tokens, known.name, known.tokens):
            reversed_.append(doubt)
            continue
        source, target = _reads_like(known.tokens, corpus.tokens)
        if source == target != "" and _copied(corpus) <= 0.5:
            lines.append(f"{corpus.name}: its source and its target both read like the {source} of {known.name}")
    if dev and len(reversed_) == len(train):
        raise UserError(reversed_[0])
    lines += [f"{line}, unless you want both directions" for line in reversed_]
    for corpus in (*train, *([dev] if dev else [])):
        if _copied(corpus) > 0.5:
            lines.append(
                f"{corpus.name}: {corpus.tokens.same:,} of {len(corpus.tokens):,} pairs are the same text on both sides"
            )
    return lines


def _copied(corpus: Named) -> float:
    """The share of pairs with the same text on both sides, among pairs without a blank side."""
    tokens = corpus.tokens
    whole = int(((tokens.source_lengths > 0) & (tokens.target_lengths > 0)).sum())
    return tokens.same / whole if whole else 0.0


def _pieces(tokens: Sides | TokenStore) -> int:
    return min(len(tokens.source_tokens), len(tokens.target_tokens))


def _reads_like(known: Sides | TokenStore, text: Sides | TokenStore) -> list[str]:
    """For source and target of `text`, the side of `known` that it clearly resembles: "source", "target" or ""."""
    # The same number of pieces from both sides: of two samples of one language, the larger would look more likely.
    n = min(_pieces(known), _COUNTED)
    sides = [_evenly_spaced(side, n) for side in (known.source_tokens, known.target_tokens)]
    text_sides = [_evenly_spaced(side, min(len(side), _COUNTED)) for side in (text.source_tokens, text.target_tokens)]
    size = 1 + max((int(side.max()) for side in (*sides, *text_sides) if len(side)), default=0)
    as_source, as_target = (np.log1p(np.bincount(side, minlength=size)) for side in sides)
    clear = _CLEAR + _CHANCE / math.sqrt(max(min(n, *map(len, text_sides)), 1))
    leads = [float((as_source - as_target)[side].mean()) if len(side) else 0.0 for side in text_sides]
    return ["source" if lead > clear else "target" if lead < -clear else "" for lead in leads]


def _evenly_spaced(tokens: np.ndarray, n: int) -> np.ndarray:
    """n tokens at equal distances from the whole text."""
    return tokens[np.linspace(0, max(len(tokens) - 1, 0), n).astype(np.int64)]
