"""Score constituency trees as EVALB does (Sekine and Collins 1997): labelled brackets, crossing brackets, tags.

Two lines with the same number, of the gold file and of the test file, are a sentence. Its brackets are a multiset of
(label, begin, end). Words whose tag the parameters delete are not counted, in each file by its own tags. If the words
that are left differ in number or spelling, the sentence is an error; if none is left in the test file, or its line is
blank, it is skipped. Neither is in the figures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from transformer.config import UserError, whole_number
from transformer.data.text import read_lines, records
from transformer.data.trees import Tree, parse
from transformer.streams import plain

log = logging.getLogger("transformer")

OK, ERROR, SKIPPED = 0, 1, 2
"""The status of a sentence."""

Bracket = tuple[str, int, int]


@dataclass
class Parameters:
    """The content of a parameter file, such as COLLINS.prm. The defaults are those of a file without any line."""

    labelled: bool = True
    """Whether labels of brackets must be the same, too."""
    cutoff: int = 40
    """The second summary is of gold sentences of at most this many words."""
    most_errors: int = 10
    """Scoring ends at the first error beyond this number."""
    deleted: set[str] = field(default_factory=set)
    """Labels of brackets that are passed over, and tags of words that are."""
    deleted_for_length: set[str] = field(default_factory=set)
    """Tags of words that the length of a sentence leaves out."""
    same_label: dict[str, str] = field(default_factory=dict)
    """Label -> the label that stands for all that are the same as it."""
    same_word: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """The beginning of the sha256 of the content, whatever the order of lines in the file."""
        parts = (sorted(part) if isinstance(part, set) else part for part in vars(self).values())
        return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()[:16]


COLLINS = Parameters(
    deleted={"TOP", "-NONE-", ",", ":", "``", "''", "."},
    deleted_for_length={"-NONE-"},
    same_label={"ADVP": "ADVP", "PRT": "ADVP"},
)
"""The content of COLLINS.prm, by which published figures are computed."""


def read_parameters(path: str) -> Parameters:
    """The parameters in a file. Raises `UserError` for an empty file, and, with the line, for a name that EVALB does
    not know."""
    found, number, quotes = Parameters(), 0, False
    numbers = {"LABELED": "labelled", "CUTOFF_LEN": "cutoff", "MAX_ERROR": "most_errors", "DEBUG": None}
    sets = {"DELETE_LABEL": found.deleted, "DELETE_LABEL_FOR_LENGTH": found.deleted_for_length}
    pairs = {"EQ_LABEL": found.same_label, "EQ_WORD": found.same_word}
    for number, line in enumerate(read_lines(path), 1):
        name, *values = line.split() or ["#"]
        if name.startswith("#"):
            continue
        if name in numbers and len(values) == 1 and whole_number(values[0]) is not None:
            if numbers[name] is not None:  # DEBUG changes what EVALB prints besides
                setattr(found, numbers[name], whole_number(values[0]))
        elif name == "QUOTE_LABEL":
            quotes = True
        elif name in sets and len(values) == 1:
            sets[name].add(values[0])
        elif name in pairs and len(values) == 2:
            same = pairs[name]
            one, other = (same.get(value, value) for value in values)
            same.update({value: one for value in [*values, *(v for v, group in same.items() if group == other)]})
        else:
            raise UserError(f"{path}:{number}: not a line of EVALB's parameters: {line.strip()[:60]!r}")
    if number == 0:
        raise UserError(f"{path}: empty; give a file of EVALB's parameters, such as COLLINS.prm")
    if quotes:
        log.warning(
            "%s: QUOTE_LABEL is passed over, so sentences that differ in quotation marks are errors", plain(path)
        )
    found.labelled = bool(found.labelled)
    return found


class Sentence(NamedTuple):
    """The counts of a sentence. All but `number`, `length` and `status` are 0 unless the status is OK."""

    number: int
    length: int
    status: int
    matched: int = 0
    gold: int = 0
    test: int = 0
    """Number of brackets."""
    crossing: int = 0
    """Number of test brackets that cross a gold bracket."""
    words: int = 0
    right_tags: int = 0


class _Line(NamedTuple):
    """The trees of a line, without what the parameters delete."""

    words: list[str]
    tags: list[str]
    brackets: list[Bracket]
    length: int


def _read(trees: Sequence[Tree], parameters: Parameters, by_tags: Sequence[str] | None = None) -> _Line:
    """`by_tags`: the tags that decide which words are deleted; None = those of the trees."""
    words, tags, brackets, length, before = [], [], [], 0, 0
    decides = iter(by_tags or ())
    for tree in trees:
        kept = [before]  # number of words that are kept before each word
        for node, begin, end in tree.spans():
            label = _plain(node.label)
            if node.word is not None:
                length += label not in parameters.deleted_for_length
                if next(decides, label) not in parameters.deleted:
                    words.append(parameters.same_word.get(node.word, node.word))
                    tags.append(parameters.same_label.get(label, label))
                kept.append(len(words))
            elif label and label not in parameters.deleted and kept[begin] < kept[end]:
                label = parameters.same_label.get(label, label) if parameters.labelled else ""
                brackets.append((label, kept[begin], kept[end]))
        before = len(words)
    return _Line(words, tags, brackets, length)


def score(gold: str, test: str, parameters: Parameters) -> Iterator[Sentence]:
    """The counts of each sentence of two files with a tree a line.

    Raises `UserError` if the files have different numbers of lines, for a tree that can't be read, for a blank line in
    the gold file, for empty files, and at the first error beyond `most_errors`.
    """
    errors = number = 0
    lines = zip_longest(records(gold), records(test))
    for number, (one, other) in enumerate(lines, 1):
        if one is None or other is None:
            short, long, line = (gold, test, other) if one is None else (test, gold, one)
            fix = "give one tree a line in both" if line.strip() else f"remove its blank line {number:,}"
            raise UserError(f"{short}: has {number - 1:,} lines, and {long} has more; {fix}")
        if not one.strip():
            raise UserError(f"{gold}:{number}: a blank line; each line must hold a tree")
        sentence = compared(number, _trees(one, gold, number), _trees(other, test, number), parameters)
        errors += sentence.status == ERROR
        if errors > parameters.most_errors:
            raise UserError(
                f"{test}:{number}: its words are not those of {gold}:{number}; that is error {errors}, and the "
                f"parameters allow {parameters.most_errors} (MAX_ERROR)"
            )
        yield sentence
    if not number:
        raise UserError(f"{gold}: empty; give a file with a tree a line")


def _trees(line: str, path: str, number: int) -> list[Tree]:
    """The trees of a line. Raises `UserError`, also for a line that holds only the beginning of a tree."""
    try:
        return parse(line, f"{path}:{number}")
    except UserError as error:
        if line.count("(") <= line.count(")"):
            raise
        raise UserError(
            f"{error}; each line must hold a whole tree: write one that takes several lines on one"
        ) from None


def _plain(label: str) -> str:
    """A label without function tags and indices: NP for NP-SBJ-1 and NP=2; but -NONE- and -LRB- as they are."""
    return label[:1] + re.split("[-=]", label[1:])[0] if label[:1] != "-" else label


def compared(
    number: int, gold: Sequence[Tree], test: Sequence[Tree], parameters: Parameters, *, by_gold_tags: bool = False
) -> Sentence:
    """The counts of a sentence, from its trees. It is skipped if no word of the test trees is left.

    `by_gold_tags`: the gold tags decide which words are deleted from both, so that wrong tags make no error; and
    without words all brackets are missed. EVALB does not do so.
    """
    by_tags = [_plain(word.label) for tree in gold for word in tree.words()] if by_gold_tags else None
    ours, theirs = _read(gold, parameters), _read(test, parameters, by_tags)
    if not theirs.words:
        missed = Sentence(number, ours.length, OK, gold=len(ours.brackets), words=len(ours.words))
        return missed if by_gold_tags else Sentence(number, ours.length, SKIPPED)
    if ours.words != theirs.words:
        return Sentence(number, ours.length, ERROR)
    return Sentence(
        *(number, ours.length, OK),
        matched=(Counter(ours.brackets) & Counter(theirs.brackets)).total(),
        gold=len(ours.brackets),
        test=len(theirs.brackets),
        crossing=_crossing(ours.brackets, theirs.brackets, len(ours.words)),
        words=len(ours.words),
        right_tags=sum(a == b for a, b in zip(ours.tags, theirs.tags, strict=True)),
    )


def _crossing(gold: Sequence[Bracket], test: Sequence[Bracket], words: int) -> int:
    """The number of test brackets that cross a gold one: just one end of that lies within them.

    For each place between words, take the furthest end of the gold brackets that begin there, and the first begin of
    those that end there. A test bracket crosses one if, of the places within it, such an end lies behind it or such a
    begin before it. A table of the extremes over 1, 2, 4, ... places makes this n log n in the number of brackets.
    """
    if not gold or not test:
        return 0
    begin, end = np.array([bracket[1:] for bracket in test]).T
    furthest, first = np.zeros(words + 1, int), np.full(words + 1, words)
    for _, b, e in gold:
        furthest[b], first[e] = max(furthest[b], e), min(first[e], b)
    crosses = np.zeros(len(test), bool)
    for size in (2**k for k in range(words.bit_length())):  # places that each entry covers
        inside = (size <= end - begin - 1) & (end - begin - 1 < 2 * size)
        low, high = begin[inside] + 1, end[inside] - size
        crosses[inside] = np.maximum(furthest[low], furthest[high]) > end[inside]
        crosses[inside] |= np.minimum(first[low], first[high]) < begin[inside]
        furthest[:-size] = np.maximum(furthest[:-size], furthest[size:])
        first[:-size] = np.minimum(first[:-size], first[size:])
    return int(crosses.sum())


# ---- Summaries -------------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """The figures of some sentences; those in percent are from 0 to 100."""

    sentences: int
    errors: int
    skipped: int
    valid: int
    recall: float
    precision: float
    f1: float
    complete: float
    """Sentences whose brackets are all right."""
    crossing: float
    """Mean number of crossing brackets in a sentence."""
    without_crossing: float
    at_most_two_crossing: float
    tagging: float


def summary(sentences: Sequence[Sentence]) -> Summary:
    valid = [one for one in sentences if one.status == OK]
    matched, gold, test, crossing, words, right = (sum(counts) for counts in _columns(valid))
    recall, precision = _percent(matched, gold), _percent(matched, test)
    return Summary(
        sentences=len(sentences),
        errors=sum(one.status == ERROR for one in sentences),
        skipped=sum(one.status == SKIPPED for one in sentences),
        valid=len(valid),
        recall=recall,
        precision=precision,
        f1=2 * recall * precision / (recall + precision) if matched else 0.0,
        complete=_percent(sum(one.matched == one.gold == one.test for one in valid), len(valid)),
        crossing=crossing / len(valid) if valid else 0.0,
        without_crossing=_percent(sum(one.crossing == 0 for one in valid), len(valid)),
        at_most_two_crossing=_percent(sum(one.crossing <= 2 for one in valid), len(valid)),
        tagging=_percent(right, words),
    )


def _columns(sentences: Sequence[Sentence]) -> Sequence[Sequence[int]]:
    """The last six fields of all sentences, by field."""
    return list(zip(*(one[3:] for one in sentences), strict=True)) or [()] * 6


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


# ---- EVALB's words ---------------------------------------------------------------------------------------------------

_HEADING = """\
  Sent.                        Matched  Bracket   Cross        Correct Tag
 ID  Len.  Stat. Recal  Prec.  Bracket gold test Bracket Words  Tags Accracy"""
_RULE = "=" * 76
_SUMMARY = (
    *(("Number of sentence", "sentences"), ("Number of Error sentence", "errors")),
    *(("Number of Skip  sentence", "skipped"), ("Number of Valid sentence", "valid")),
    *(("Bracketing Recall", "recall"), ("Bracketing Precision", "precision"), ("Bracketing FMeasure", "f1")),
    *(("Complete match", "complete"), ("Average crossing", "crossing"), ("No crossing", "without_crossing")),
    *(("2 or less crossing", "at_most_two_crossing"), ("Tagging accuracy", "tagging")),
)


def report(sentences: Sequence[Sentence], parameters: Parameters) -> Iterator[str]:
    """The lines that EVALB prints: a row for each sentence, and the two summaries."""
    yield from _HEADING.split("\n")
    yield _RULE
    for one in sentences:
        recall, precision = _percent(one.matched, one.gold), _percent(one.matched, one.test)
        yield (
            f"{one.number:4}  {one.length:3}  {one.status:3}  {recall:6.2f} {precision:6.2f}  {one.matched:4}   "
            f"{one.gold:4} {one.test:4}   {one.crossing:4}   {one.words:4}  {one.right_tags:4}   "
            f"{_percent(one.right_tags, one.words):6.2f}"
        )
    yield _RULE
    whole = summary(sentences)
    total = Sentence(0, 0, OK, *map(sum, _columns([one for one in sentences if one.status == OK])))
    yield (
        f"{'':16}{whole.recall:6.2f} {whole.precision:6.2f} {total.matched:6} {total.gold:5} {total.test:5}  "
        f"{total.crossing:5}  {total.words:5} {total.right_tags:5}   {whole.tagging:6.2f}"
    )
    yield "=== Summary ==="
    short = [one for one in sentences if one.length <= parameters.cutoff]
    for name, some in (("All", sentences), (f"len<={parameters.cutoff}", short)):
        yield from ("", *summary_lines(name, summary(some)))


def summary_lines(name: str, figures: Summary) -> Iterator[str]:
    """The lines that EVALB prints for a summary."""
    yield f"-- {name} --"
    for words, attribute in _SUMMARY:
        value = getattr(figures, attribute)
        yield f"{words:25} = {value:6}" if isinstance(value, int) else f"{words:25} = {value:6.2f}"
