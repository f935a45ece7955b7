"""Where translations go wrong: BLEU by length of the source, kept and copied words, repetitions, wrong words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformer.streams import plain
from transformer.tasks.judges import References, bleu

_STEP, _LAST = 10, 60  # source lengths are grouped in tens; the last group has all from here on
_LONGEST_PHRASE = 8
_SHOWN = 15  # wrong words
_SHORT, _LONG = 0.5, 2.0  # times the reference's words

Words = list[list[str]]


def breakdown(
    sources: Sequence[str], lengths: Sequence[int], hypotheses: Sequence[str], references: References, tokenize: str
) -> dict[str, Any]:
    """Figures about the translations of a test set, and the same figures of its first reference for comparison.

    `lengths`: pieces of each source. `tokenize`: the name of sacreBLEU's tokeniser, which splits all texts into words.

    "by_source_length": sentences, BLEU and the ratio of the numbers of words, for each group of lengths.
    "kept": of the words that source and reference share, such as names and numbers, the share that the translation
    has; "kept_numbers": the same of words with a digit. "copied": the share of words that stand in the source.
    "repeating": sentences in which a phrase stands twice in a row. "short", "long": sentences with less than half of
    the reference's words, or more than twice as many. "exact": sentences that equal a reference.
    "too_often", "missing": the most frequent words that no reference has so often, or that the translation lacks.
    """
    split: Callable[[str], str] = bleu(tokenize).tokenizer
    ours, source_words = _words(hypotheses, split), _words(sources, split)
    theirs = [_words(lines, split) for lines in references]
    first = theirs[0]
    return {
        "by_source_length": list(_by_length(lengths, hypotheses, references, ours, first, tokenize)),
        "length_ratio": _ratio(ours, first),
        "kept": _kept(source_words, first, ours, lambda word: any(char.isalnum() for char in word)),
        "kept_numbers": _kept(source_words, first, ours, lambda word: any(char.isdigit() for char in word)),
        "copied": {"translations": _copied(ours, source_words), "references": _copied(first, source_words)},
        "repeating": {"translations": sum(map(_repeats, ours)), "references": sum(map(_repeats, first))},
        "empty": sum(not words for words in ours),
        "short": sum(len(a) < _SHORT * len(b) for a, b in zip(ours, first, strict=True)),
        "long": sum(len(a) > _LONG * len(b) for a, b in zip(ours, first, strict=True)),
        "exact": sum(line in given for line, *given in zip(hypotheses, *references, strict=True)),
        **_wrong_words(ours, theirs),
    }


def _words(lines: Sequence[str], split: Callable[[str], str]) -> Words:
    return [split(line).split() for line in lines]


def _ratio(ours: Words, theirs: Words) -> float | None:
    """Words of the translations for each word of the references; None if these have none."""
    count = sum(map(len, theirs))
    return sum(map(len, ours)) / count if count else None


def _by_length(
    lengths: Sequence[int],
    hypotheses: Sequence[str],
    references: References,
    ours: Words,
    first: Words,
    tokenize: str,
) -> Iterator[dict[str, Any]]:
    metric = bleu(tokenize)
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(min(length, _LAST) // _STEP * _STEP, []).append(i)
    for least, chosen in sorted(groups.items()):
        some = [[lines[i] for i in chosen] for lines in (hypotheses, *references)]
        yield {
            "pieces": f"{least}-{least + _STEP - 1}" if least < _LAST else f"{_LAST}-",
            "sentences": len(chosen),
            "bleu": metric.corpus_score(some[0], some[1:]).score,
            "length_ratio": _ratio([ours[i] for i in chosen], [first[i] for i in chosen]),
        }


def _kept(sources: Words, references: Words, ours: Words, counts: Callable[[str], bool]) -> dict[str, Any]:
    """Number of the words that source and reference share, and the share of them that the translation has."""
    shared = kept = 0
    for source, reference, words in zip(sources, references, ours, strict=True):
        both = Counter(filter(counts, source)) & Counter(reference)
        shared += both.total()
        kept += (both & Counter(words)).total()
    return {"words": shared, "share": kept / shared if shared else None}


def _copied(lines: Words, sources: Words) -> float | None:
    """The share of words with a letter that also stand in the source; None if there are none."""
    count = copied = 0
    for words, source in zip(lines, sources, strict=True):
        letters = Counter(word for word in words if re.search(r"[^\W\d_]", word))
        count += letters.total()
        copied += (letters & Counter(source)).total()
    return copied / count if count else None


def _repeats(words: Sequence[str]) -> bool:
    """Whether a phrase of up to `_LONGEST_PHRASE` words stands twice in a row."""
    return any(
        words[i : i + n] == words[i + n : i + 2 * n]
        for n in range(1, min(_LONGEST_PHRASE, len(words) // 2) + 1)
        for i in range(len(words) - 2 * n + 1)
    )


def _wrong_words(ours: Words, theirs: Sequence[Words]) -> dict[str, list[tuple[str, int]]]:
    """The most frequent words that are too often in a translation, for each of its references, and that are missing in
    it, for the first one."""
    too_often: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for words, *given in zip(ours, *theirs, strict=True):
        most: Counter[str] = Counter()
        for reference in given:
            most |= Counter(reference)
        too_often += Counter(words) - most
        missing += Counter(given[0]) - Counter(words)
    return {"too_often": too_often.most_common(_SHOWN), "missing": missing.most_common(_SHOWN)}


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """The result of `breakdown` as lines of text."""
    yield "source pieces   sentences    BLEU   words, of the reference's"
    for row in found["by_source_length"]:
        yield f"{row['pieces']:>13}   {row['sentences']:>9,}   {row['bleu']:>5.2f}   {_share(row['length_ratio'])}"
    yield f"words: {_share(found['length_ratio'])} of the reference's"
    for name, what in (("kept", "words"), ("kept_numbers", "numbers")):
        kept = found[name]
        if kept["words"]:
            yield f"{what} that source and reference share: {kept['words']:,}; kept {_share(kept['share'])}"
    copied, repeating = found["copied"], found["repeating"]
    yield f"words copied from the source: {_share(copied['translations'])} (reference: {_share(copied['references'])})"
    yield (
        f"sentences: {repeating['translations']:,} repeat a phrase at once (reference: {repeating['references']:,}), "
        f"{found['empty']:,} empty, {found['short']:,} under half as long as the reference, {found['long']:,} over "
        f"twice as long, {found['exact']:,} equal to a reference"
    )
    for name, what in (("too_often", "words that the reference lacks"), ("missing", "words that are missing")):
        yield f"{what}: " + (", ".join(f"{plain(word)} {count:,}" for word, count in found[name]) or "none")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"
