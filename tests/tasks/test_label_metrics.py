"""Scores of labels against their definitions, and against figures that were computed by hand."""

import subprocess
import sys

import numpy as np
import pytest

from transformer.tasks.label_metrics import (
    class_metrics,
    confusion,
    confusion_lines,
    regression_metrics,
    spans,
    tag_metrics,
)


def test_two_classes() -> None:
    """4 true positives, 1 false positive, 2 false negatives, 3 true negatives."""
    gold = np.array([1] * 6 + [0] * 4)
    predicted = np.array([1] * 4 + [0] * 2 + [1] + [0] * 3)
    counts_CC = confusion(gold, predicted, 2)
    assert counts_CC.tolist() == [[3, 1], [2, 4]]
    found = class_metrics(counts_CC)
    assert found["accuracy"] == 0.7 and found["f1"] == pytest.approx(8 / 11)
    assert found["matthews"] == pytest.approx((4 * 3 - 1 * 2) / (5 * 6 * 4 * 5) ** 0.5)


def test_more_classes_and_one_that_never_occurs() -> None:
    gold, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    found = class_metrics(confusion(gold, predicted, 4))
    assert found["f1"] == pytest.approx(np.mean([1 / 2, 4 / 5, 2 / 3]))
    # The correlation of Gorodkin (2004): that of the indicators of both sides, summed over classes.
    one, other = (np.eye(4)[side] - np.eye(4)[side].mean(0) for side in (gold, predicted))
    expected = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    assert found["matthews"] == pytest.approx(expected)


def test_all_texts_in_one_class() -> None:
    found = class_metrics(confusion(np.array([0, 0, 1]), np.array([0, 0, 0]), 2))
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": 0.0, "matthews": 0.0}


def test_the_table() -> None:
    heading, negative, positive = confusion_lines(np.array([[3, 1], [2, 4]]), ["no", "yes"])
    assert heading.split() == ["no", "yes", "precision", "recall", "F1"]
    assert negative.split() == ["no", "3", "1", "0.6000", "0.7500", "0.6667"]
    assert positive.split() == ["yes", "2", "4", "0.8000", "0.6667", "0.7273"]
    assert len(heading) == len(negative) == len(positive)


def test_a_table_of_many_classes() -> None:
    """It would be too wide: the rates of each class, and below them the most frequent confusions."""
    names = [f"intent_{i:02}" for i in range(20)]
    counts_CC = np.diag(np.full(20, 5))
    counts_CC[3, 7], counts_CC[19, 0], counts_CC[2, 3] = 1200, 2, 3
    lines = list(confusion_lines(counts_CC, names))
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["texts", "precision", "recall", "F1"]
    assert [line.split()[0] for line in lines[1:21]] == names
    assert lines[4].split() == ["intent_03", "1,205", "0.6250", "0.0041", "0.0082"]
    assert lines[21] == "the most frequent confusions (3 of 3):"
    assert [line.split() for line in lines[22:]] == [
        ["label", "predicted", "texts"],
        ["intent_03", "intent_07", "1,200"],
        ["intent_02", "intent_03", "3"],
        ["intent_19", "intent_00", "2"],
    ]
    assert list(confusion_lines(np.diag(np.full(20, 5)), names))[-1].startswith("intent_19")  # without confusions


def test_a_table_of_very_many_classes_or_long_names() -> None:
    """Of 300 classes, the 50 with the most errors; of 600 confusions, 20. Names lose their middle."""
    draw = np.random.default_rng(0)
    counts_CC = np.zeros((300, 300), np.int64)
    for i in range(60):
        counts_CC[i, draw.permutation(300)[:10]] = 1 + i
    lines = list(confusion_lines(counts_CC, [f"{i:03}" + "x" * 50 + f"{i:03}" for i in range(300)]))
    assert len(lines) == 1 + 50 + 1 + 2 + 20 and max(map(len, lines)) <= 100
    assert lines[51] == "... and 250 classes with fewer errors" and "(20 of " in lines[52]
    assert [line[:3] for line in lines[1:51]] == sorted(line[:3] for line in lines[1:51])
    wrong = sorted((counts_CC - np.diag(np.diag(counts_CC))).ravel().tolist(), reverse=True)
    assert [int(line.split()[2]) for line in lines[54:]] == wrong[:20]
    assert all("..." in name and name.endswith(name[:3]) for line in lines[54:] for name in line.split()[:2])


def test_numbers() -> None:
    gold, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 9.0])
    found = regression_metrics(gold, predicted)
    assert found["pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2, 3.5, 3.5])[0, 1])
    assert found["mean_squared_error"] == pytest.approx((0 + 4 + 36 + 25) / 4)


@pytest.mark.parametrize("constant", [1.0, 0.1, 1 / 3, 0.7e9])
def test_equal_numbers_correlate_with_nothing(constant: float) -> None:
    """Though the mean of several times 0.1 is not always 0.1 exactly."""
    for count in range(2, 12):
        same, other = np.full(count, constant), np.arange(count) ** 2 / 7
        for pair in ((same, other), (other, same), (same, same), (same, 3 * same)):
            found = regression_metrics(*pair)
            assert found["pearson"] == found["spearman"] == 0


def test_numbers_that_differ_little_from_each_other() -> None:
    """In the last two bits alone: their correlation is that of the differences."""
    steps, other = np.array([0.0, 1, 1, 3]), np.array([1.0, 2, 5, 4])
    found = regression_metrics(1e15 + steps / 8, other)
    assert found["pearson"] == pytest.approx(np.corrcoef(steps, other)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 4, 3])[0, 1])


def test_scores_need_no_scipy() -> None:
    code = "import sys, transformer.tasks.label_scores; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-a I-a O B-b", [(0, 2, "a"), (3, 4, "b")]),
        ("B-a B-a I-b", [(0, 1, "a"), (1, 2, "a"), (2, 3, "b")]),
        ("I-a I-a O I-b", [(0, 2, "a"), (3, 4, "b")]),
        ("S-a B-b I-b E-b I-b", [(0, 1, "a"), (1, 4, "b"), (4, 5, "b")]),
        ("U-a B-b L-b O", [(0, 1, "a"), (1, 3, "b")]),
        ("O O", []),
    ],
)
def test_spans(tags: str, expected: list) -> None:
    assert list(spans(tags.split())) == expected


def test_spans_count_whole() -> None:
    """3 gold spans and 3 predicted ones; 1 is right, one has another end, one another type."""
    gold, predicted = [["B-a", "I-a", "O", "B-b"], ["B-a"]], [["B-a", "I-a", "O", "B-a"], ["B-b"]]
    found = tag_metrics(gold, predicted, spans_marked=True)
    assert found == {"accuracy": 0.6, "f1": pytest.approx(1 / 3), "precision": 1 / 3, "recall": 1 / 3}


def test_tags_without_spans() -> None:
    found = tag_metrics([["N", "V", "N"]], [["N", "N", "N"]], spans_marked=False)
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx((0.8 + 0) / 2)}


def test_texts_without_a_span() -> None:
    """Spans were learnt, but these texts have none: nothing is found, so F1 is 0, not that of the words outside."""
    found = tag_metrics([["O", "O"]], [["O", "O"]], spans_marked=True)
    assert found == {"accuracy": 1, "f1": 0, "precision": 0, "recall": 0}
