"""Pairs and masks of a masked language model, counted: shares, truncation, whole words; batches depend on seed and step
alone."""

from __future__ import annotations

import dataclasses
import random
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from transformer.config import PretrainConfig, UserError
from transformer.data.masking import MaskedRows, in_order, mask
from transformer.data.rows import Batches
from transformer.data.running import Text, parts
from transformer.data.sentence_pairs import IS_NEXT, NO_PAIR, RANDOM, Row, Sentences, pairs, removed, sentence_rows
from transformer.data.text_store import TextStore, encode_text
from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json

pytest.importorskip("tokenizers")
STEMS = [a + b for a in "bcdfgh" for b in "aeiou"]
PIECES = [*SPECIAL_PIECES, *STEMS, "##s", "##ed", "##ing"]
CONFIG = PretrainConfig(context=24, short_share=0.0)


@pytest.fixture(scope="module")
def vocabulary() -> WordPiece:
    return WordPiece(tokenizer_json(PIECES, lower_case=True))


def documents(count: int, seed: int = 0) -> list[list[str]]:
    """Documents of 1 to 12 sentences of 1 to 9 words."""
    draw = random.Random(seed)
    words = [stem + end for stem in STEMS for end in ("", "s", "ed", "sing")]
    return [
        [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(draw.randint(1, 12))] for _ in range(count)
    ]


@pytest.fixture(scope="module")
def store(vocabulary: WordPiece, tmp_path_factory) -> TextStore:
    folder = tmp_path_factory.mktemp("documents")
    text = "\n\n".join("\n".join(document) for document in documents(600))
    (folder / "a.txt").write_text(text + "\n")
    return encode_text(Text((str(folder / "a.txt"),), "blank_lines"), vocabulary, folder=folder)


def rows_of(config: PretrainConfig, *stores: TextStore, seed: int = 1, duplicates: int = 1) -> list[Row]:
    return [Row(*row) for row in sentence_rows(config, stores, seed=seed, duplicates=duplicates).tolist()]


def texts_of(row: Row, store: TextStore) -> tuple[list[int], list[int]]:
    """The pieces of both texts of a row, before anything is cut."""
    runs = (row.begin, row.end), (row.second_begin, row.second_end)
    return tuple([i for i in store.tokens[a:b].tolist() if i != store.vocabulary.sep] for a, b in runs)


def test_sentences_are_the_lines_of_documents(store: TextStore, vocabulary: WordPiece) -> None:
    sentences = Sentences(store)
    expected = documents(600)
    assert len(sentences.firsts) == 601
    for d in (0, 1, 599):
        lines = range(sentences.firsts[d], sentences.firsts[d + 1])
        ids = [store.tokens[sentences.begins[i] : sentences.ends[i]].tolist() for i in lines]
        assert ids == vocabulary.encode_lines(expected[d])


def test_pairs_are_those_of_the_original(store: TextStore) -> None:
    """Half are drawn at random; the second text follows the first, or is of another document; no sentence is lost."""
    sentences = Sentences(store)
    rows = rows_of(CONFIG, store, duplicates=3)
    document = np.searchsorted(store.offsets, [(row.begin, row.second_begin) for row in rows], side="right")
    several = Counter()  # of pairs whose chunk has two sentences at least
    for row, (first, second) in zip(rows, document.tolist(), strict=True):
        assert row.next in (IS_NEXT, RANDOM)
        assert (first == second) == (row.next == IS_NEXT)
        if row.next == IS_NEXT:
            assert row.second_begin == row.end + 1  # a line break lies between
        last = row.end == store.offsets[first]
        if not last:
            several[row.next] += 1
    share = several[RANDOM] / several.total()
    assert abs(share - 0.5) < 3 * 0.5 / several.total() ** 0.5
    # The sentences of a document that are first texts or really next are all of its sentences, once for each copy.
    used = Counter()
    for row in rows:
        used.update(range(row.begin, row.end))
        if row.next == IS_NEXT:
            used.update(range(row.second_begin, row.second_end))
    for begin, end in zip(sentences.begins, sentences.ends, strict=True):
        assert all(used[at] == 3 for at in range(begin, end))


def test_pairs_have_no_sentence_too_many(store: TextStore) -> None:
    sentences = Sentences(store)
    lengths = dict(zip(sentences.ends.tolist(), sentences.lengths, strict=True))
    for row in rows_of(CONFIG, store):
        first, second = texts_of(row, store)
        assert row.count + row.second_count == min(len(first) + len(second), 21)
        if row.next == IS_NEXT:  # without its last sentence the chunk would be too short
            assert len(first) + len(second) - lengths[row.second_end] < 21


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_some_documents_have_short_pairs(share: float) -> None:
    """Their length is spread evenly over 2..21; that of the others is 21."""
    firsts = range(0, 1_000 * 61, 60)
    sentences = types.SimpleNamespace(lengths=[1] * firsts[-1], firsts=firsts)
    rng, lengths = np.random.default_rng(0), [Counter() for _ in firsts[1:]]
    for pair in pairs(sentences, 21, short_share=share, rng=rng):
        lengths[pair.first[0] // 60][sum(end - begin for begin, end in (pair.first, pair.second))] += 1
    targets = Counter(max(counts) for counts in lengths)
    assert set(targets) == set(range(2, 22))
    spread = len(lengths) * share / 20
    assert all(abs(targets[length] - spread) < 4 * spread**0.5 for length in range(2, 21))
    assert abs(targets[21] - spread - len(lengths) * (1 - share)) < 60


def cut(first: list, second: list, most: int, draw: random.Random) -> None:
    """`truncate_seq_pair` of create_pretraining_data.py."""
    while len(first) + len(second) > most:
        longer = first if len(first) > len(second) else second
        if draw.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def test_truncation_is_that_of_the_original(store: TextStore) -> None:
    for first in range(1, 30):
        for second in range(1, 30):
            texts = [0] * first, [0] * second
            cut(*texts, 13, random.Random(0))
            assert removed(first, second, 13) == (first - len(texts[0]), second - len(texts[1]))
    fronts, lost = 0, 0
    for row in rows_of(CONFIG, store, duplicates=5):
        first, _ = texts_of(row, store)
        fronts, lost = fronts + row.skip, lost + len(first) - row.count
    assert lost > 1_000 and abs(fronts / lost - 0.5) < 3 * 0.5 / lost**0.5


def test_filled_rows_hold_each_piece_once(store: TextStore) -> None:
    rows = rows_of(dataclasses.replace(CONFIG, next_sentence=False, context=8), store)
    found = []
    for row in rows:
        assert row.next == NO_PAIR and row.second_count == 0 and 1 <= row.count <= 6
        found += texts_of(row, store)[0][row.skip : row.skip + row.count]
    assert found == [i for i in store.tokens.tolist() if i != store.vocabulary.sep]
    documents = np.searchsorted(store.offsets, [(row.begin, row.end - 1) for row in rows], side="right")
    assert (documents[:, 0] == documents[:, 1]).all()


def test_masks_are_eighty_ten_ten(vocabulary: WordPiece) -> None:
    """Counted over 40,000 masked pieces; a piece that stays can also be drawn at random."""
    rng = np.random.default_rng(0)
    counts, placed, drawn = Counter(), Counter(), Counter()
    for _ in range(2_000):
        ids = rng.integers(5, 20, 102)
        before = ids.copy()
        places, labels = mask(ids, np.arange(1, 101), 20, vocabulary, rng, whole_words=False)
        assert (np.diff(places) > 0).all() and len(places) == 20 and (before[places] == labels).all()
        untouched = np.setdiff1d(np.arange(102), places)
        assert (ids[untouched] == before[untouched]).all()
        placed.update(places.tolist())
        for new, old in zip(ids[places].tolist(), labels.tolist(), strict=True):
            counts["mask" if new == vocabulary.mask else "same" if new == old else "other"] += 1
            drawn[new] += new != old and new != vocabulary.mask
    random_share = 0.1 / vocabulary.size
    for kind, share in (("mask", 0.8 + random_share), ("same", 0.1 + random_share)):
        assert abs(counts[kind] / 40_000 - share) < 0.006, kind  # 3 standard errors
    assert set(range(vocabulary.size)) - {vocabulary.mask} == {i for i, n in drawn.items() if n}  # any piece
    assert set(placed) == set(range(1, 101))
    assert min(placed.values()) > 300 and max(placed.values()) < 500  # 400 each


def test_whole_words_are_masked_together(vocabulary: WordPiece) -> None:
    rng = np.random.default_rng(0)
    line = "bas caing desing fu gosed " * 4
    ids = np.array([vocabulary.cls, *vocabulary.encode(line), vocabulary.sep])
    words = np.cumsum(vocabulary.starts[ids])
    candidates, sizes = np.arange(1, len(ids) - 1), Counter()
    for _ in range(300):
        places, _ = mask(ids.copy(), candidates, 6, vocabulary, rng, whole_words=True)
        assert len(places) <= 6
        sizes[len(places)] += 1
        chosen = set(words[places].tolist())
        assert set(np.flatnonzero(np.isin(words, list(chosen))).tolist()) == set(places.tolist())
    assert sizes[6] > 250  # words of one piece fill up what longer ones leave


def test_batches(store: TextStore, vocabulary: WordPiece) -> None:
    """Each row: [CLS] a [SEP] b [SEP]; what is masked is the piece of the text; padding is all zero."""
    rows = MaskedRows(CONFIG, [store], seed=3)
    batches = Batches(rows, batch_tokens=8 * 24, seed=3)
    assert batches.shapes[0] == {"text": (8, 24), "part": (8, 24), "place": (8, 4), "label": (8, 4), "next": (8, 1)}
    seen, used = Counter(), 0
    for step in range(batches.batches_per_epoch):
        batch = batches[step]
        for text, part, place, label, (is_next,) in zip(*batch.values(), strict=True):
            n = int((part > 0).sum())
            used += n
            if not n:
                assert not any(x.any() for x in (text, place, label)) and is_next == 0
                continue
            places = place[place > 0]
            restored = text.copy()
            restored[places] = label[place > 0]
            assert len(places) == min(20, max(1, round(0.15 * n)))
            assert restored[0] == vocabulary.cls and not text[n:].any() and not part[n:].any()
            seps = np.flatnonzero(restored[:n] == vocabulary.sep)
            assert seps.tolist() == [int((part == 1).sum()) - 1, n - 1] and not np.isin(seps, places).any()
            seen[int(is_next), tuple(restored[:n].tolist())] += 1
    expected = Counter()
    for row in rows._rows.tolist():
        row = Row(*row)
        first, second = texts_of(row, store)
        kept = first[row.skip :][: row.count], second[row.second_skip :][: row.second_count]
        expected[row.next, (vocabulary.cls, *kept[0], vocabulary.sep, *kept[1], vocabulary.sep)] += 1
    assert seen == expected
    assert batches.padding == pytest.approx(1 - used / (batches.batches_per_epoch * 8 * 24))


def test_a_batch_depends_on_seed_and_step_alone(store: TextStore) -> None:
    def batches(seed: int, **options) -> Batches:
        config = dataclasses.replace(CONFIG, **options)
        return Batches(MaskedRows(config, [store], seed=seed), batch_tokens=8 * 24, seed=seed)

    one, other = batches(3), batches(3)
    n = one.batches_per_epoch
    steps = (n + 5, 0, 2 * n - 1)
    again = {step: other[step] for step in reversed(steps)}
    for step in steps:
        for name, x in one[step].items():
            np.testing.assert_array_equal(x, again[step][name])
        part = one.read(step, 2, 5)
        assert all((x == one[step][name][2:5]).all() for name, x in part.items())
    assert one.digest() == other.digest() != batches(4).digest()
    assert not np.array_equal(one[0]["text"], batches(4)[0]["text"])


@pytest.mark.parametrize("static", [False, True])
def test_masks_of_the_next_epoch(store: TextStore, static: bool) -> None:
    config = dataclasses.replace(CONFIG, static_masks=static)
    batches = Batches(MaskedRows(config, [store], seed=3), batch_tokens=8 * 24, seed=3)
    epochs = []
    for epoch in range(2):
        rows = {}
        for step in range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch):
            batch = batches[step]
            for text, place, label in zip(batch["text"], batch["place"], batch["label"], strict=True):
                restored = text.copy()
                restored[place[place > 0]] = label[place > 0]
                rows[tuple(restored.tolist())] = place.tolist()
        epochs.append(rows)
    assert epochs[0].keys() == epochs[1].keys()
    same = sum(epochs[1][row] == places for row, places in epochs[0].items()) / len(epochs[0])
    assert same == 1 if static else same < 0.2
    # Rows of one length are masked differently, too.
    full = [tuple(places) for row, places in epochs[0].items() if row[-1]]
    assert len(set(full)) > 0.8 * len(full) > 100


def test_text_without_documents_has_no_pairs(store: TextStore, vocabulary: WordPiece, tmp_path: Path) -> None:
    (tmp_path / "chat.txt").write_text("\nbas cas\n\nfu\n" + "ga " * 50 + "\n")
    chat = encode_text(Text((str(tmp_path / "chat.txt"),), "files"), vocabulary, folder=tmp_path)
    rows = MaskedRows(CONFIG, [store, chat], seed=0, folder=tmp_path, duplicates=2)
    of_chat = [Row(*row) for row in rows._rows.tolist() if row[0] == 1]
    assert [(row.next, row.count) for row in of_chat] == [(NO_PAIR, n) for n in (5, 22, 22, 6)] * 2
    (first,) = [i for i, row in enumerate(rows._rows.tolist()) if row[0] == 1][:1]
    batch = rows.batch([first], 0, 2)
    assert batch["next"].tolist() == [[0], [0]] and set(batch["part"][0].tolist()) == {0, 1}
    assert rows.lines([first], 0) == f"{tmp_path / 'chat.txt'}:2-4"
    again = MaskedRows(CONFIG, [store, chat], seed=0, folder=tmp_path, duplicates=2)
    assert again.digest() == rows.digest()
    assert sum(len(batch["text"]) for batch in in_order(rows, 7)) == -(-rows.count // 7) * 7


def test_lines_of_a_pair(store: TextStore) -> None:
    rows = MaskedRows(CONFIG, [store], seed=3)
    row = next(i for i, row in enumerate(rows._rows.tolist()) if row[1] == IS_NEXT)
    path, _, ranges = rows.lines([row], 0).rpartition(":")
    (a, b), (c, d) = (map(int, (part + "-" + part).split("-")[:2]) for part in ranges.split(","))
    lines = Path(path).read_text().split("\n")
    fields = Row(*rows._rows[row].tolist())
    first, second = texts_of(fields, store)
    assert rows.vocabulary.encode(" ".join(lines[a - 1 : b])).tolist() == first
    assert rows.vocabulary.encode(" ".join(lines[c - 1 : d])).tolist() == second


def test_a_single_document_has_no_pairs(vocabulary: WordPiece, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ba\nca\nda\nfa\n")
    whole = Text((str(tmp_path / "a.txt"),), "blank_lines")
    with pytest.raises(UserError, match=r"^a\.txt: holds a single document, but pairs of texts need two; separate"):
        MaskedRows(CONFIG, [encode_text(whole, vocabulary, folder=tmp_path)], seed=0)
    runs = whole._replace(most_lines=2)
    assert [(part.text, part.line, part.begins) for part in parts(runs)] == [("ba\nca", 1, True), ("da\nfa", 3, True)]
    MaskedRows(CONFIG, [encode_text(runs, vocabulary, folder=tmp_path)], seed=0)
