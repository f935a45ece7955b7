"""Scores of labels: accuracy, F1, Matthews' correlation; correlations of numbers; F1 of tagged spans; confusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Rates(NamedTuple):
    """Precision, recall and their harmonic mean; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float


def rates(right: float, predicted: float, gold: float) -> Rates:
    """`right`: the number of those that were predicted and are gold."""

    def share(part: float, whole: float) -> float:
        return float(part / whole) if whole else 0.0

    return Rates(share(right, predicted), share(right, gold), share(2 * right, predicted + gold))


# ---- Classes ---------------------------------------------------------------------------------------------------------


def confusion(gold_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """counts_CC: how many texts of each class (rows) are given each class (columns)."""
    counts_CC = np.zeros((classes, classes), np.int64)
    np.add.at(counts_CC, (gold_N, predicted_N), 1)
    return counts_CC


def class_metrics(counts_CC: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation of a confusion table.

    With two classes, F1 is that of the second one, as in GLUE; with more, the mean over all classes that occur.
    Matthews' correlation is that of Gorodkin (2004), and 0 if all texts have, or are given, the same class.
    """
    gold_C, predicted_C, right_C = counts_CC.sum(1), counts_CC.sum(0), np.diag(counts_CC)
    total, right = float(counts_CC.sum()), float(right_C.sum())
    f1_C = [rates(*one).f1 for one in zip(right_C, predicted_C, gold_C, strict=True)]
    occurs_C = (gold_C + predicted_C) > 0
    covariance = right * total - float(gold_C @ predicted_C)
    spread = (total**2 - float(gold_C @ gold_C)) * (total**2 - float(predicted_C @ predicted_C))
    return {
        "accuracy": right / total,
        "f1": float(f1_C[1]) if len(f1_C) == 2 else float(np.mean(np.array(f1_C)[occurs_C])),
        "matthews": covariance / spread**0.5 if spread else 0.0,
    }


def confusion_lines(counts_CC: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """The table for people: a row for each class, a column for each class that it is given; precision, recall, F1.

    If it would be wider than 100 columns, the lines have a table without the columns of classes instead, and a list of
    the most frequent confusions. Of very many classes, they have those with the most errors.
    """
    width, first = max(6, *map(len, names)), max(5, *map(len, names))
    heading = "  ".join(f"{name:>{width}}" for name in names)
    heading = f"{'':{first}}  {heading}  {_RATES}"
    if len(heading) > _WIDEST:
        yield from _narrow_lines(counts_CC, [_shortened(name) for name in names])
        return
    yield heading
    for i, name in enumerate(names):
        row = "  ".join(f"{count:>{width},}" for count in counts_CC[i])
        yield f"{name:{first}}  {row}  {_rates_of(counts_CC, i)}"


_WIDEST = 100  # columns
_LONGEST = 40  # characters of a name in a narrow table
_MOST_ROWS, _MOST_CONFUSIONS = 50, 20
_RATES = "precision  recall      F1"


def _narrow_lines(counts_CC: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """The precision, recall and F1 of each class, and the most frequent confusions."""
    width, gold_C = max(9, *map(len, names)), counts_CC.sum(1)
    wrong_CC = counts_CC - np.diag(np.diag(counts_CC))
    by_errors = np.argsort(-(wrong_CC.sum(0) + wrong_CC.sum(1)), kind="stable")
    yield f"{'':{width}}  {'texts':>9}  {_RATES}"
    for i in sorted(by_errors[:_MOST_ROWS].tolist()):
        yield f"{names[i]:{width}}  {gold_C[i]:>9,}  {_rates_of(counts_CC, i)}"
    if len(names) > _MOST_ROWS:
        yield f"... and {len(names) - _MOST_ROWS:,} classes with fewer errors"
    pairs = int((wrong_CC > 0).sum())
    if not pairs:
        return
    shown = min(pairs, _MOST_CONFUSIONS)
    yield f"the most frequent confusions ({shown} of {pairs:,}):"
    yield f"{'label':{width}}  {'predicted':{width}}  {'texts':>9}"
    for flat in np.argsort(-wrong_CC, axis=None, kind="stable")[:shown]:
        label, predicted = np.unravel_index(flat, wrong_CC.shape)
        yield f"{names[label]:{width}}  {names[predicted]:{width}}  {wrong_CC[label, predicted]:>9,}"


def _shortened(name: str) -> str:
    """A name without its middle if it is long."""
    end = _LONGEST // 3
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - end - 3]}...{name[-end:]}"


def _rates_of(counts_CC: np.ndarray, i: int) -> str:
    """Precision, recall and F1 of a class below `_RATES`."""
    one = rates(counts_CC[i, i], counts_CC[:, i].sum(), counts_CC[i].sum())
    return f"{one.precision:9.4f}  {one.recall:6.4f}  {one.f1:6.4f}"


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def regression_metrics(gold_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation, and the mean squared error.

    Both correlations are 0 if all numbers of one side are equal, for which they are not defined.
    """
    return {
        "pearson": _correlation(gold_N, predicted_N),
        "spearman": _correlation(_ranks(gold_N), _ranks(predicted_N)),
        "mean_squared_error": float(np.mean((gold_N - predicted_N) ** 2)),
    }


def _ranks(a_N: np.ndarray) -> np.ndarray:
    """The place of each number in ascending order, from 1; equal numbers share the mean of their places."""
    _, which_N, counts_U = np.unique(a_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts_U) - (counts_U - 1) / 2)[which_N]


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Pearson's correlation; 0 if all numbers of one side are equal."""
    # The mean of equal numbers may differ from them by rounding. So it is taken of differences, which are exactly 0.
    a_N, b_N = (x_N - x_N[0] for x_N in (a_N, b_N))
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    spread = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return float(a_N @ b_N) / spread if spread else 0.0


# ---- Tags ------------------------------------------------------------------------------------------------------------


def tag_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, spans_marked: bool
) -> dict[str, float]:
    """Accuracy of words. If the tags mark spans (`Labels.spans`), also F1, precision and recall of whole spans, as
    conlleval counts them; else F1 is that of words, the mean over tags."""
    pairs = [pair for one, other in zip(gold, predicted, strict=True) for pair in zip(one, other, strict=True)]
    accuracy = sum(a == b for a, b in pairs) / len(pairs)
    if not spans_marked:
        names = sorted({name for pair in pairs for name in pair})
        index = {name: i for i, name in enumerate(names)}
        ids = np.array([[index[name] for name in pair] for pair in pairs])
        counts_CC = confusion(ids[:, 0], ids[:, 1], len(names))
        each = [rates(counts_CC[i, i], counts_CC[:, i].sum(), counts_CC[i].sum()).f1 for i in range(len(names))]
        return {"accuracy": accuracy, "f1": float(np.mean(each))}
    ours, theirs = ([{*spans(tags)} for tags in side] for side in (predicted, gold))
    right = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
    found = rates(right, sum(map(len, ours)), sum(map(len, theirs)))
    return {"accuracy": accuracy, "f1": found.f1, "precision": found.precision, "recall": found.recall}


def spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(begin, end, type) of each span that tags of the forms IOB1, IOB2, BIOES and BILOU mark, as conlleval reads them:
    a tag I- after another type, or after the end of a span, begins a new one."""
    begin, before = 0, "O"
    for i, tag in enumerate([*tags, "O"]):
        new = tag[0] in "BSU" or (tag != "O" and (before == "O" or before[0] in "ESLU" or before[2:] != tag[2:]))
        if before != "O" and (new or tag == "O"):
            yield begin, i, before[2:]
        begin, before = i if new else begin, tag
