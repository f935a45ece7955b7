"""Rows of a language model: each piece is predicted exactly once an epoch, whatever the sizes. Batches depend on seed
and step alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer.config import BOS, EOS, UserError
from transformer.data.rows import Batches
from transformer.data.running import Text
from transformer.data.text_store import TextStore, encode_text
from transformer.data.vocabularies import Characters
from transformer.data.windows import Packed, Windows, evaluation_batches, rows_of

HYPOTHESIS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIRST = 0x4E00  # each piece is another character, from this one on


def store_of(folder: Path, lengths: list[int], kind: str = "none") -> TextStore:
    """A text of different characters: a running text, or one document of each length, two in a file."""
    folder.mkdir(exist_ok=True)
    characters = iter(chr(FIRST + i) for i in range(sum(lengths)))
    texts = ["".join(next(characters) for _ in range(n)) for n in lengths]
    vocabulary, paths = Characters("".join(texts) + "\n"), []
    for i in range(0, len(texts), 2):
        paths.append(folder / f"{i}.txt")
        paths[-1].write_text(("\n\n" if kind == "blank_lines" else "").join(texts[i : i + 2]), encoding="utf-8")
    return encode_text(Text(tuple(map(str, paths)), kind), vocabulary, folder=folder / "cache", workers=1)


def predictions(store: TextStore, batch: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """(document, piece) of everything that a batch predicts. Checks each row on the way: what is read and predicted
    follows on one another in the text, and padding is at the end."""
    found = []
    for r, text in enumerate(batch["text"].tolist()):
        following, predicted = batch["next"][r].tolist(), batch["predicted"][r].tolist()
        number = batch["document"][r].tolist() if store.framed else [1] * len(text)
        for i, (piece, after) in enumerate(zip(text, following, strict=True)):
            if not predicted[i]:
                continue
            assert number[i] > 0
            if piece == BOS:
                assert i == 0 or number[i] == number[i - 1] + 1  # a document begins
            elif i and number[i] == number[i - 1]:
                assert piece == following[i - 1]
            document = document_of(store, after if after != EOS else piece)
            found.append((document, after))
        if store.framed:
            real = [n for n in number if n]
            assert number == real + [0] * (len(number) - len(real))  # padding is at the end
            assert real == sorted(real) and set(real) == set(range(1, len(set(real)) + 1))
            assert not any(one for n, one in zip(number, predicted, strict=True) if not n)
    return found


def document_of(store: TextStore, piece: int) -> int:
    """The document of a piece, which occurs once in the text."""
    at = int(np.flatnonzero(store.tokens == piece)[0])
    return int(np.searchsorted(store.offsets, at, side="right")) - 1


def all_predictions(store: TextStore) -> Counter:
    """(document, piece) of all that can be predicted."""
    if not store.framed:
        return Counter((0, int(piece)) for piece in store.tokens[1:])
    pairs = Counter((document_of(store, int(piece)), int(piece)) for piece in store.tokens)
    return pairs + Counter((d, EOS) for d in range(len(store)))


def epoch_of(batches: Batches, store: TextStore, epoch: int) -> Counter:
    n = batches.batches_per_epoch
    return Counter(pair for step in range(epoch * n, (epoch + 1) * n) for pair in predictions(store, batches[step]))


@given(
    length=st.integers(3, 120),
    context=st.integers(2, 40),
    rows=st.integers(1, 7),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 9),
)
@HYPOTHESIS
def test_windows_predict_each_piece_once_an_epoch(tmp_path, length, context, rows, accumulate, seed) -> None:
    store = store_of(tmp_path, [length])
    if length <= context:
        with pytest.raises(UserError, match=rf"^data\.context = {context}: 0\.txt has {length} pieces, and a window"):
            Windows(store, context)
        return
    batches = Batches(
        rows_of(store, context, seed), batch_tokens=rows * accumulate * context, accumulate=accumulate, seed=seed
    )
    shape = batches.shapes[0]
    assert shape.keys() == {"text", "next", "predicted"} and shape["text"] == shape["next"]
    assert shape["text"][0] % accumulate == 0 and shape["text"][0] <= rows * accumulate and shape["text"][1] == context
    for epoch in range(3):
        assert epoch_of(batches, store, epoch) == all_predictions(store)
    for step in range(batches.batches_per_epoch):
        assert batches[step]["predicted"].any()  # no batch is empty


@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    context=st.integers(2, 20),
    rows=st.integers(1, 5),
    seed=st.integers(0, 9),
)
@HYPOTHESIS
def test_packed_documents_predict_each_piece_and_each_end_once_an_epoch(tmp_path, lengths, context, rows, seed) -> None:
    store = store_of(tmp_path, lengths, "blank_lines")
    batches = Batches(rows_of(store, context, seed), batch_tokens=rows * context, seed=seed)
    assert batches.shapes[0].keys() == {"text", "next", "predicted", "document"}
    for epoch in range(2):
        assert epoch_of(batches, store, epoch) == all_predictions(store)
    # A begin of a document is read once for each.
    read = [batches[step] for step in range(batches.batches_per_epoch)]
    assert sum(int(((b["text"] == BOS) & (b["document"] > 0)).sum()) for b in read) == len(lengths)


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    kind=st.sampled_from(["none", "blank_lines"]),
    context=st.integers(2, 20),
    rows=st.integers(1, 5),
    data=st.data(),
)
@HYPOTHESIS
def test_evaluation_predicts_each_piece_once_after_enough_others(tmp_path, lengths, kind, context, rows, data) -> None:
    stride = data.draw(st.one_of(st.none(), st.integers(1, context)))
    store = store_of(tmp_path, lengths, kind)
    found: Counter = Counter()
    for batch in evaluation_batches(store, context=context, batch_tokens=rows * context, stride=stride):
        assert {x.shape for x in batch.values()} == {(rows, context)}
        found.update(predictions(store, batch))
        for r, c in zip(*np.nonzero(batch["predicted"]), strict=True):
            before = [piece for piece in batch["text"][r, : c + 1].tolist()]
            if store.framed:
                same = batch["document"][r, : c + 1] == batch["document"][r, c]
                before = batch["text"][r, : c + 1][same].tolist()
            first = {BOS, int(store.tokens[0])}  # the beginning of a document
            assert len(before) >= context - (stride or context) or before[0] in first
    assert found == all_predictions(store)


def test_a_run_goes_on_with_the_same_rows(tmp_path) -> None:
    """Any step is read alone, in any order, in any parts of its rows, with the same result."""
    for store in (store_of(tmp_path, [300]), store_of(tmp_path / "b", [7, 30, 2, 11, 40, 3], "blank_lines")):
        straight = Batches(rows_of(store, 8, 3), batch_tokens=5 * 8, seed=3)
        steps = [straight[step] for step in range(3 * straight.batches_per_epoch)]
        for step in (len(steps) - 1, 1, len(steps) // 2):
            again = Batches(rows_of(store, 8, 3), batch_tokens=5 * 8, seed=3)
            assert again.shape(step) == {name: x.shape for name, x in steps[step].items()}
            parts = [again.read(step, begin, end) for begin, end in ((0, 1), (1, 3), (3, 9))]
            for name, whole in steps[step].items():
                padded = np.concatenate([whole, np.zeros_like(whole)])[:9]
                assert np.array_equal(np.concatenate([part[name] for part in parts]), padded)
        other = Batches(rows_of(store, 8, 4), batch_tokens=5 * 8, seed=4)
        assert any(not np.array_equal(other[0][name], x) for name, x in steps[0].items())
        assert other.digest() != straight.digest() == again.digest()
        assert (
            len({other.digest(), straight.digest(), Batches(rows_of(store, 9, 3), batch_tokens=45, seed=3).digest()})
            == 3
        )
        assert straight.locate(straight.batches_per_epoch) == (1, 0)


def test_epochs_begin_at_another_place_and_have_another_order(tmp_path) -> None:
    store = store_of(tmp_path, [1_000])
    windows = Windows(store, 16)
    rng = np.random.default_rng(0)
    offsets = {windows.draw(rng) for _ in range(300)}
    assert len(offsets) >= 8 and offsets <= set(range(1, 17))  # at least half of all
    batches = Batches(windows, batch_tokens=64, seed=0)
    n = batches.batches_per_epoch
    firsts = [[batches[step]["text"][0, 0] for step in range(epoch * n, (epoch + 1) * n)] for epoch in range(3)]
    assert firsts[0] != firsts[1] != firsts[2]
    assert batches.padding < 0.1


def test_no_batch_differs_by_more_than_a_row(tmp_path) -> None:
    store = store_of(tmp_path, [1_000])
    batches = Batches(Windows(store, 8), batch_tokens=5 * 8, seed=0)
    rows = [int(batches[step]["predicted"].any(axis=1).sum()) for step in range(batches.batches_per_epoch)]
    assert max(rows) - min(rows) <= 1 and max(rows) == 5 and len(rows) == 26


def test_a_budget_below_a_row_is_told(tmp_path) -> None:
    store = store_of(tmp_path, [50])
    with pytest.raises(UserError, match=r"^train\.batch_tokens = 15: too small for 2 micro-batches of a row of"):
        Batches(Windows(store, 8), batch_tokens=15, accumulate=2, seed=0)


def test_the_lines_of_a_batch(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("ab\ncd\nef\n")
    (tmp_path / "b.txt").write_text("gh\n\nij")
    text = Text((str(tmp_path / "a.txt"), str(tmp_path / "b.txt")))
    vocabulary = Characters("abcdefghij\n")
    batches = Batches(Windows(encode_text(text, vocabulary, folder=tmp_path), 4), batch_tokens=100, seed=0)
    assert batches.batches_per_epoch == 1
    files = dict(one.rsplit(":", 1) for one in batches.lines(0).split("; "))
    assert files.keys() == set(text.paths)
    for path, count in zip(text.paths, (3, 3), strict=True):
        ranges = [[int(n) for n in one.split("-")] for one in files[path].split(",")]
        assert {line for one in ranges for line in range(one[0], one[-1] + 1)} == set(range(1, count + 1))
    packed = Packed(encode_text(text._replace(documents="blank_lines"), vocabulary, folder=tmp_path), 20, 0)
    lines = Batches(packed, batch_tokens=100, seed=0).lines(0)
    assert sorted(lines.split("; ")) == [f"{text.paths[0]}:1-3", f"{text.paths[1]}:1,3"]


def test_evaluation_refuses_a_wrong_stride_and_a_single_piece(tmp_path) -> None:
    store = store_of(tmp_path, [9])
    for stride in (0, 5, -1):
        with pytest.raises(UserError, match=rf"^stride {stride}: must be from 1 to data\.context \(4\)$"):
            next(evaluation_batches(store, context=4, batch_tokens=8, stride=stride))
    single = store_of(tmp_path / "b", [1])
    with pytest.raises(UserError, match=r"^0\.txt: has a single piece, so nothing is predicted"):
        next(evaluation_batches(single, context=4, batch_tokens=8))


def test_contexts_of_a_million_are_packed(tmp_path) -> None:
    """Lengths of two sides are combined into one number, which 32 bits do not hold then."""
    (tmp_path / "a.txt").write_text("\n\n".join(["a" * 70_000] * 3))
    store = encode_text(Text((str(tmp_path / "a.txt"),), "blank_lines"), Characters("a"), folder=tmp_path)
    assert Packed(store, 100_000, 0).count == 3 and Packed(store, 1_000_000, 0).count == 1
