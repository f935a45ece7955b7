"""Rows of labelled texts: special pieces, cut pairs, words of tags; batches that have each row once an epoch."""

import numpy as np
import pytest

from transformer.config import LabelledConfig, UserError
from transformer.data.framing import frame, frame_words
from transformer.data.labelled import Example
from transformer.data.labelled_rows import LabelledBatches, LabelledRows, split
from transformer.data.labels import Labels, class_weights, learn, read
from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json

pytest.importorskip("tokenizers", reason="needs tokenizers")
VOCABULARY = WordPiece(tokenizer_json([*SPECIAL_PIECES, *"abcdef", "##s"], lower_case=True))
CLS, SEP, UNK = VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.unk


def ids(text: str) -> list[int]:
    return VOCABULARY.encode_lines([text])[0]


# ---- Framing ---------------------------------------------------------------------------------------------------------


def test_a_text_and_a_pair_between_their_special_pieces() -> None:
    one, pair = frame(VOCABULARY, [["a b"], ["a b", "c"]], None)
    assert one.ids == [CLS, *ids("a b"), SEP] and one.part == [1] * 4
    assert pair.ids == [CLS, *ids("a b"), SEP, *ids("c"), SEP] and pair.part == [1] * 4 + [2] * 2
    assert (one.cut, pair.cut, one.starts) == (0, 0, [])


def one_piece_after_the_other(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """As `_truncate_seq_pair` of BERT's run_classifier.py says it."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    for first in range(8):
        for second in range(8):
            for longest in range(5, 20):
                texts = ["a b c d e f a b"[: 2 * first], "f e d c b a f e"[: 2 * second]]
                expected = one_piece_after_the_other(ids(texts[0]), ids(texts[1]), longest - 3)
                (row,) = frame(VOCABULARY, [texts], longest)
                assert row.ids == [CLS, *expected[0], SEP, *expected[1], SEP]
                assert row.cut == first + second - sum(map(len, expected))


def test_a_single_text_loses_its_end() -> None:
    (row,) = frame(VOCABULARY, [["a b c d e"]], 5)
    assert row.ids == [CLS, *ids("a b c"), SEP] and row.cut == 2


def test_words_have_their_places() -> None:
    """A word without pieces is the unknown piece; no word after one that does not fit whole is kept."""
    (row,) = frame_words(VOCABULARY, [["as", "b", "\u200d", "cs"]], None)
    assert row.ids == [CLS, *ids("as"), *ids("b"), UNK, *ids("cs"), SEP] and row.starts == [1, 3, 4, 5]
    (row,) = frame_words(VOCABULARY, [["as", "b", "cs", "d"]], 6)
    assert row.ids == [CLS, *ids("as b"), SEP] and (row.starts, row.cut) == ([1, 3], 2)


def test_a_first_word_that_is_too_long_loses_its_end() -> None:
    """So that the model sees a word of every text."""
    (row,) = frame_words(VOCABULARY, [["a.b.c.d", "b"]], 5)
    assert len(row.ids) == 5 and (row.starts, row.cut) == ([1], 1)
    (whole,) = frame_words(VOCABULARY, [["a.b.c.d", "b"]], None)
    assert row.ids == [*whole.ids[:4], SEP]


# ---- Labels ----------------------------------------------------------------------------------------------------------


def examples(labels: list, texts: list | None = None) -> list[Example]:
    return [Example("a" if texts is None else texts[i], None, x, 0, i + 1) for i, x in enumerate(labels)]


@pytest.mark.parametrize(
    ("given", "names"),
    [(["b", "a", "b"], ("a", "b")), (["10", "9", "9"], ("9", "10")), (["10", "9", "x"], ("10", "9", "x"))],
)
def test_names_are_in_their_order(given: list[str], names: tuple[str, ...]) -> None:
    labels = learn(LabelledConfig(), "auto", examples(given))
    assert labels.names == names and labels.metric == "accuracy" and labels.size == len(names)
    assert given.count(labels.usual) == max(map(given.count, names))
    assert [int(labels.ids(one, "x")[0]) for one in examples(list(names))] == list(range(1, len(names) + 1))


def test_numbers_as_classes_and_many_tags_are_told(caplog) -> None:
    learn(LabelledConfig(train=("a.tsv",)), "auto", examples(["0.0", "1.0", "0.0"]))  # as pandas writes classes
    assert not caplog.messages
    learn(LabelledConfig(train=("a.tsv",)), "auto", examples(["0.5", "3", "1e1"]))
    told = "a.tsv: the labels are numbers, but are learnt as classes; else: --data.kind regression"
    assert caplog.messages == [told]
    tags = tuple(f"lemma{i}" for i in range(101))
    learn(LabelledConfig(kind="tags", train=("a.conll",)), "auto", [Example(tags, None, tags, 0, 1)])
    assert caplog.messages[1].startswith("a.conll: 101 different tags for 101 words; is the last column the tag? awk ")


def test_numbers_are_scaled() -> None:
    labels = learn(LabelledConfig(kind="regression", second="b"), "auto", examples(["10", "20", "30"]))
    assert (labels.mean, labels.size, labels.metric, labels.pairs) == (20, 1, "pearson", True)
    scaled = [labels.ids(one, "x").view(np.float32)[0] for one in examples(["10", "20", "30"])]
    np.testing.assert_allclose(scaled, [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)


def test_a_number_far_beyond_those_of_training_is_named() -> None:
    """Its square is not finite in 32 bits: no two checkpoints would differ."""
    labels = learn(LabelledConfig(kind="regression"), "auto", examples(["1", "2", "3"]))
    for label in ("1e200", "-1.8e308", "1e18"):
        with pytest.raises(
            UserError, match=r"^dev\.tsv:1: the label .* is .* standard deviations away from the mean of"
        ):
            labels.ids(*examples([label]), "dev.tsv")
    with np.errstate(all="raise"):
        assert np.isfinite(np.square(labels.ids(*examples(["1e14"]), "dev.tsv").view(np.float32)))


def test_small_numbers_differ() -> None:
    labels = learn(LabelledConfig(kind="regression"), "auto", examples(["1e-14", "3e-14"]))
    assert (labels.mean, labels.scale) == pytest.approx((2e-14, 1e-14))


@pytest.mark.parametrize(
    ("tags", "metric"), [(("B-x", "O"), "f1"), (("NOUN", "O"), "accuracy"), (("O", "X"), "accuracy")]
)
def test_the_score_of_tags(tags: tuple[str, ...], metric: str) -> None:
    assert learn(LabelledConfig(kind="tags"), "auto", examples([tags], [("a", "b")])).metric == metric


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("classes", ["x", "x"], "all labels are 'x'; nothing can be learnt from one label alone"),
        ("regression", ["2.5", "2.5"], "all numbers are 2.5; nothing can be learnt"),
        ("regression", ["1e300", "2"], "the numbers have no finite variance in 64 bits; divide them by a constant"),
        ("classes", [str(i) for i in range(300)], "300 different labels for 300 texts; check data.label"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from(kind: str, given: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        learn(LabelledConfig(kind=kind, train=("t.tsv",)), "auto", examples(given))
    assert f"t.tsv: {told}" in str(error.value)


def test_labels_are_read_as_they_were_written() -> None:
    for labels in (
        Labels("classes", "f1", ("a", "ü"), "a", pairs=True),
        Labels("regression", "mean_squared_error", mean=2.5, scale=0.1),
    ):
        name, content = labels.file
        assert read(content, name) == labels
    assert b'"direction": "down"' in content
    for harmed in (b"", b"[]", b"{}", content.replace(b'"regression"', b'"other"')):
        with pytest.raises(UserError, match=r"^labels\.json was not written by this program"):
            read(harmed, name)


def test_a_label_that_training_has_not_seen() -> None:
    labels = Labels("classes", "accuracy", ("a", "b"))
    with pytest.raises(UserError, match=r"^dev\.tsv:7: the label 'c' never occurs in training, which has a, b;"):
        labels.ids(Example("x", None, "c", 0, 7), "dev.tsv")


def test_class_weights() -> None:
    labels, train = Labels("classes", "accuracy", ("a", "b")), examples(["a", "a", "a", "b"])
    assert class_weights((), labels, train) is None
    assert class_weights(("balanced",), labels, train) == (4 / 6, 2)
    assert class_weights(("b=3",), labels, train) == (1, 3)
    with pytest.raises(UserError, match=r"^tune\.class_weights: no training text has the label 'c'"):
        class_weights(("c=3",), labels, train)
    with pytest.raises(UserError, match=r"^tune\.class_weights: all weights are 0"):
        class_weights(("a=0", "b=0"), labels, train)


# ---- Batches ---------------------------------------------------------------------------------------------------------

TEXTS = [" ".join("a" * n) for n in np.random.default_rng(0).integers(1, 30, 203)]
LABELS = Labels("classes", "accuracy", ("x", "y"))


def rows() -> LabelledRows:
    return LabelledRows(examples(["xy"[i % 2] for i in range(203)], TEXTS), ("t.tsv",), VOCABULARY, LABELS, 20)


def batches(**changed: int) -> LabelledBatches:
    return LabelledBatches(rows(), **{"batch_rows": 16, "buckets": 3, "seed": 0, **changed})


def content(batch: dict[str, np.ndarray]) -> list[tuple]:
    return [
        (*text[part > 0].tolist(), *label.tolist())
        for text, part, label in zip(*(batch[name] for name in ("text", "part", "label")), strict=True)
        if part.any()
    ]


def test_an_epoch_has_each_row_once_and_fits_its_shapes() -> None:
    found, all_rows = batches(), rows()
    assert found.batches_per_epoch == 13 and len(found.shapes) <= 3 and found.padding < 0.3
    expected = sorted((*row.ids, int(label[0])) for row, label in zip(all_rows.rows, all_rows.label_ids, strict=True))
    for epoch in (0, 1):
        steps = range(13 * epoch, 13 * epoch + 13)
        for step in steps:
            shape = {name: array.shape for name, array in found[step].items()}
            assert shape == found.shape(step) and shape in found.shapes
        assert sorted(row for step in steps for row in content(found[step])) == expected
    assert content(found[0]) != content(found[13])
    assert content(batches(seed=1)[0]) != content(found[0])


def test_a_batch_is_a_function_of_its_step_and_can_be_read_in_parts() -> None:
    found, other = batches(), batches()
    for step in (20, 3):
        whole = other[step]
        for name, array in found[step].items():
            np.testing.assert_array_equal(array, whole[name])
            parts = [found.read(step, begin, begin + 4)[name] for begin in range(0, 16, 4)]
            np.testing.assert_array_equal(array, np.concatenate(parts))
    assert found.digest() == other.digest() != batches(seed=2).digest()
    lines = found.lines(5)
    assert lines.startswith("t.tsv:") and len(lines.split(",")) <= 16


def test_tags_have_labels_at_the_first_pieces_of_words() -> None:
    labels = Labels("tags", "accuracy", ("N", "V"), "N")
    words = [("as", "b"), ("c", "ds", "e")]
    found = LabelledRows(examples([("N", "V"), ("V", "N", "V")], words), ("t",), VOCABULARY, labels, 8)
    batch = found.batch([1, 0], 3, 8)
    assert batch["label"].tolist() == [[0, 2, 1, 0, 2, 0, 0, 0], [0, 1, 0, 2, 0, 0, 0, 0], [0] * 8]
    assert batch["part"].sum(axis=1).tolist() == [6, 5, 0]


def test_fewer_rows_than_a_batch() -> None:
    few = LabelledRows(examples(["x", "y", "x"]), ("t",), VOCABULARY, LABELS, 8)
    found = LabelledBatches(few, batch_rows=32, accumulate=2, buckets=4, seed=0)
    assert found.batches_per_epoch == 1 and found.shapes == ({"text": (4, 3), "part": (4, 3), "label": (4, 1)},)


def test_a_drawn_development_set() -> None:
    train, dev = split(examples([str(i) for i in range(50)]), 0.1, "regression")
    assert len(dev) == 5 and sorted([*train, *dev], key=lambda one: one.line) == examples([str(i) for i in range(50)])
    assert split(examples(["1", "2"]), 0.99, "regression")[0]
    assert split(examples(["1", "2"]), 0.0, "regression")[1] == []


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_every_label_stays_in_training(kind: str) -> None:
    """A drawn development set leaves at least one example of each class, or tag, to training."""
    given = ["usual"] * 40 + [f"rare {i // 2}" for i in range(20)]
    given = [tuple(label.split()) for label in given] if kind == "tags" else given
    train, dev = split(examples(given), 0.5, kind)
    assert {one.label for one in train} == set(given) and 15 < len(dev) <= 30
    assert sorted([*train, *dev], key=lambda one: one.line) == examples(given)
    numbers = examples([str(i) for i in range(60)])
    assert len(split(numbers, 0.5, "regression")[1]) == 30
