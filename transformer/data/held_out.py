"""Warnings about development and test sets: useless references, and pairs that are also in the training text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from transformer.data.languages import Named
from transformer.data.tokens import TokenStore

_MIN_SHARE = 0.1  # share of a set; warn if at least so many of its pairs occur in the other text
_CHUNK = 1 << 20  # pairs that are compared at a time
_MIN_REFERENCES = 10  # with fewer references, more than half may be equal by chance


class HeldOut(NamedTuple):
    """A development or test set."""

    name: str
    tokens: TokenStore
    sources: Sequence[str]
    references: Sequence[str]


def held_out_doubts(train: Sequence[Named], dev: HeldOut | None, test: HeldOut | None) -> Iterator[str]:
    """Yield a warning of one line for each doubt about the development and test sets of a run."""
    sets = [(kind, held) for kind, held in (("development", dev), ("test", test)) if held is not None]
    counts = shared([corpus.tokens for corpus in train], [held.tokens for _, held in sets])
    for (kind, held), count in zip(sets, counts, strict=True):
        yield from reference_doubts(held.name, held.sources, held.references)
        yield from _in_training(held.name, kind, count, len(held.tokens), "pairs")
    if dev and test:
        (count,) = shared([dev.tokens], [test.tokens])
        yield from _in_development(test.name, count, len(test.tokens), "pairs")


def seen_doubts(
    train: Iterable[Hashable], dev: tuple[str, Sequence[Hashable]] | None, test: tuple[str, Sequence[Hashable]] | None
) -> Iterator[str]:
    """Yield a warning of one line for a development or test set, given with its name, whose texts were seen before."""
    known = set(train)
    for kind, held in (("development", dev), ("test", test)):
        if held is not None:
            name, texts = held
            yield from _in_training(name, kind, sum(text in known for text in texts), len(texts), "texts")
    if dev is not None and test is not None:
        (_, chosen_on), (name, texts) = dev, test
        yield from _in_development(name, sum(map(set(chosen_on).__contains__, texts)), len(texts), "texts")


def _in_training(name: str, kind: str, count: int, size: int, what: str) -> Iterator[str]:
    if count and count >= _MIN_SHARE * size:
        yield (
            f"{name}: {count:,} of {size:,} {what} of the {kind} set are in the training text, too, so its scores tell "
            "little about other text; remove them from one of the two"
        )


def _in_development(name: str, count: int, size: int, what: str) -> Iterator[str]:
    if count and count >= _MIN_SHARE * size:
        yield (
            f"{name}: {count:,} of {size:,} {what} of the test set are in the development set, too, which chooses the "
            "checkpoint, so its scores are too high; remove them from one of the two"
        )


def reference_doubts(name: str, sources: Sequence[str], references: Sequence[str]) -> Iterator[str]:
    """Yield a warning of one line for each doubt about the references of the set `name`."""
    count = len(references)
    blank = [bool(source.strip()) for source, line in zip(sources, references, strict=True) if not line.strip()]
    if any(blank) or len(blank) == count:  # a blank reference is right for a blank source
        yield f"{name}: {len(blank):,} of {count:,} references are blank, and scores count them like any other"
    if missing := sum(
        not source.strip() and bool(line.strip()) for source, line in zip(sources, references, strict=True)
    ):
        yield f"{name}: {missing:,} of {count:,} sources are blank, but their references are not"
    text, most = Counter(line.strip() for line in references).most_common(1)[0] if references else ("", 0)
    if text and (most == count > 1 or (count >= _MIN_REFERENCES and most > count / 2)):
        yield f"{name}: {most:,} of {count:,} references are the same, {text[:60]!r}; check that they are translations"


def shared(known: Sequence[TokenStore], texts: Sequence[TokenStore]) -> list[int]:
    """For each of `texts`, the number of its pairs that occur in `known` with the same pieces on both sides. Pairs with
    a blank side do not count."""
    pairs = [
        Counter(_pair(text, i) for i in range(len(text)) if text.source_lengths[i] and text.target_lengths[i])
        for text in texts
    ]
    wanted = {pair for text in pairs for pair in text}
    hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_hashes(text, 0, len(text)) for text in texts)]))
    occurring: set[tuple[bytes, bytes]] = set()
    for tokens in known:
        for begin in range(0, len(tokens), _CHUNK):
            candidates = np.isin(_hashes(tokens, begin, min(begin + _CHUNK, len(tokens))), hashes)
            for i in begin + np.flatnonzero(candidates):
                if not wanted:
                    break
                if (pair := _pair(tokens, i)) in wanted:
                    wanted.remove(pair)
                    occurring.add(pair)
    return [sum(count for pair, count in text.items() if pair in occurring) for text in pairs]


def _pair(tokens: TokenStore, i: int) -> tuple[bytes, bytes]:
    return tokens.source(i).astype(np.int32).tobytes(), tokens.target(i).astype(np.int32).tobytes()


def _hashes(tokens: TokenStore, begin: int, end: int) -> np.ndarray:
    """A hash of the lengths and of a few pieces of each pair from `begin` up to `end`: uint64 (end - begin,).

    It is cheap, and differs for nearly all pairs that differ. Equal pairs have equal hashes.
    """
    hashes = np.zeros(end - begin, np.uint64)
    for ids, offsets in (
        (tokens.source_tokens, tokens.source_offsets),
        (tokens.target_tokens, tokens.target_offsets),
    ):
        first, last = (np.asarray(side, np.int64) for side in (offsets[begin:end], offsets[begin + 1 : end + 1]))
        columns = [last - first]
        if len(ids):
            at = (first, (2 * first + last) // 3, (first + 2 * last) // 3, last - 1)
            columns += [ids[np.clip(places, 0, len(ids) - 1)] for places in at]
        for column in columns:
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64) + np.uint64(1)
    return hashes
