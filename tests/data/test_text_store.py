"""The store of a text: its pieces, documents and places, kept once by content, alike for any number of processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from transformer.config import EOS, UserError
from transformer.data import pool, running, text_store
from transformer.data.running import Text
from transformer.data.text_store import TextStore, encode_text
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabularies import Bytes, Characters, SentencePiece

DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefgh", k=DRAW.randint(2, 6))) for _ in range(60)]
LINES = [" ".join(DRAW.choices(WORDS, k=8)) for _ in range(400)]
TWO = ("one\ntwo\n\nthree é\n", "four\n\n\nfive\nsix")


@pytest.fixture(scope="module")
def vocabulary() -> SentencePiece:
    return SentencePiece(Tokenizer.train(LINES, vocab_size=400, running=True).model)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, ...]:
    for name, content in zip("ab", TWO, strict=True):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    return tuple(str(tmp_path / f"{name}.txt") for name in "ab")


def test_it_holds_a_running_text(paths, tmp_path) -> None:
    store, whole = encode_text(Text(paths), Bytes(), folder=tmp_path), "".join(TWO)
    assert store.vocabulary.decode(store.tokens) == whole and len(store) == 1
    assert (store.characters, store.bytes, store.missing) == (len(whole), len(whole) + 1, {})
    assert store.tokens.dtype == np.dtype("<u2") and store.positions.tolist() == [len(whole)]  # é is two bytes
    read, following = store.read(0, 2, 6)
    assert store.vocabulary.decode(read) == whole[2:6] and store.vocabulary.decode(following) == whole[3:7]
    # The first piece is not predicted. Position 0 predicts the second piece of line 1.
    a, b = paths
    assert [store.place(0, i) for i in (0, 3, 8, 17)] == [(a, 1), (a, 2), (a, 4), (b, 1)]
    assert store.place(0, len(whole) - 1) == (b, 5)
    with pytest.raises(ValueError):  # a read-only view into a file
        store.tokens[0] = 1


def test_it_holds_documents(paths, tmp_path) -> None:
    store = encode_text(Text(paths, "blank_lines"), Bytes(), folder=tmp_path)
    v, found = store.vocabulary, ["one\ntwo", "three é", "four", "five\nsix"]
    assert [v.decode(store.tokens[a:b]) for a, b in zip(store.offsets, store.offsets[1:], strict=False)] == found
    assert store.positions.tolist() == [8, 9, 5, 9]  # the end is predicted, too
    read, following = store.read(1, 0, 9)
    assert read.tolist() == [v.begin, *v.encode("three é")] and following.tolist() == [*v.encode("three é"), EOS]
    read, following = store.read(1, 3, 5)
    assert v.decode(read) == "re" and v.decode(following) == "ee"
    assert [part.tolist() for part in store.read(2, 4, 5)] == [v.encode("r").tolist(), [EOS]]
    places = [store.place(d, i) for d, i in ((0, 0), (0, 4), (1, 8), (2, 0), (2, 4), (3, 8))]
    a, b = paths
    assert places == [(a, 1), (a, 2), (a, 4), (b, 1), (b, 1), (b, 5)]
    files = encode_text(Text(paths, "files"), Bytes(), folder=tmp_path)
    assert [v.decode(files.tokens[a:b]) for a, b in zip(files.offsets, files.offsets[1:], strict=False)] == list(TWO)


def test_unknown_characters_are_counted_and_told(paths, tmp_path) -> None:
    store = encode_text(Text(paths), Characters("onetwhrfuivsx\n é"), folder=tmp_path)
    assert store.missing == {} and store.doubt() is None
    store = encode_text(Text(paths), Characters("onetwhrfuivsx\n"), folder=tmp_path)
    assert store.missing == {" ": 1, "é": 1}
    told = "a.txt and 1 more: 2 characters were never seen in training: "
    assert store.doubt().startswith(told) and "é (U+00E9)" in store.doubt()


def test_it_is_made_once_and_kept_by_content(paths, tmp_path, monkeypatch) -> None:
    made = encode_text(Text(paths), Bytes(), folder=tmp_path / "cache")
    others = [
        encode_text(Text(paths[::-1]), Bytes(), folder=tmp_path / "cache"),
        encode_text(Text(paths, "files"), Bytes(), folder=tmp_path / "cache"),
        encode_text(Text(paths, end=9), Bytes(), folder=tmp_path / "cache"),
        encode_text(Text(paths), Characters("".join(TWO)), folder=tmp_path / "cache"),
    ]
    assert len({made.text, *(other.text for other in others)}) == 5
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    moved = Text(tuple(shutil.copy(path, elsewhere) for path in paths))
    monkeypatch.setattr(text_store, "_build", None)
    again = encode_text(moved, Bytes(), folder=tmp_path / "cache")
    assert (again.path, again.text, again.sha256()) == (made.path, made.text, made.sha256())
    assert again.place(0, 0) == (moved.paths[0], 1)


def test_a_damaged_store_is_made_again(paths, tmp_path, caplog) -> None:
    made = encode_text(Text(paths), Bytes(), folder=tmp_path / "cache")
    tokens, path = made.tokens.tolist(), made.path
    (path / "tokens").write_bytes(b"\1\0" * 40)
    assert encode_text(Text(paths), Bytes(), folder=tmp_path / "cache").tokens.tolist() == tokens
    assert "making the text store again" in caplog.text
    (path / "tokens").write_bytes(b"")
    with pytest.raises(ValueError, match="tokens is not as it was written"):
        TextStore(path, Text(paths), Bytes())


@pytest.fixture
def small(monkeypatch) -> None:
    """Small parts and chunks, so that a short text is worth several processes."""
    monkeypatch.setattr(running, "_PART", 100)
    monkeypatch.setattr(text_store, "_CHUNK", 500)
    monkeypatch.setattr(text_store, "_PARALLEL_FROM", 2)


@pytest.mark.parametrize("kind", ["none", "blank_lines"])
def test_processes_change_nothing(small, vocabulary, tmp_path, monkeypatch, kind: str) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" + "\n" * (i % 7 == 0) for i, line in enumerate(LINES)))
    text = Text((str(tmp_path / "a.txt"),), kind)
    plain = encode_text(text, vocabulary, folder=tmp_path / "plain", workers=1)
    monkeypatch.setattr(SentencePiece, "encode", None)  # the children do all the work: they import the module anew
    many = encode_text(text, vocabulary, folder=tmp_path / "many", workers=2)
    assert many.sha256() == plain.sha256() and many.tokens.tolist() == plain.tokens.tolist()
    assert (many.characters, many.missing) == (plain.characters, plain.missing)
    if kind == "none":
        assert vocabulary.decode(many.tokens) == Path(text.paths[0]).read_text()


def test_parts_give_the_pieces_of_the_whole(small, vocabulary, tmp_path) -> None:
    whole = "\n".join(LINES) + "\n"
    (tmp_path / "a.txt").write_text(whole)
    store = encode_text(Text((str(tmp_path / "a.txt"),)), vocabulary, folder=tmp_path, workers=1)
    assert store.tokens.tolist() == vocabulary.encode(whole).tolist()


def die(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_in_one_line(small, vocabulary, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    monkeypatch.setattr(pool, "_apply", die)
    with pytest.raises(UserError, match=r"^data\.workers: one of 2 processes that tokenise was killed.*$"):
        encode_text(Text((str(tmp_path / "a.txt"),)), vocabulary, folder=tmp_path / "cache", workers=2)
    assert list((tmp_path / "cache/texts").iterdir()) == []


def test_a_text_that_changes_meanwhile_is_told(paths, tmp_path, monkeypatch) -> None:
    whole = text_store.parts

    def changing(text, digests=None):
        if digests is not None:
            Path(paths[0]).write_text("another text")
        return whole(text, digests)

    monkeypatch.setattr(text_store, "parts", changing)
    with pytest.raises(UserError, match=r"a\.txt or .*b\.txt changed while it was read; run the same command again"):
        encode_text(Text(paths), Bytes(), folder=tmp_path / "cache")
    assert list((tmp_path / "cache/texts").iterdir()) == []


def test_an_id_beyond_the_vocabulary_is_told(paths, tmp_path) -> None:
    class Wrong(Bytes):
        size = 100

    with pytest.raises(UserError, match=r"^the vocabulary has 100 pieces, but gives the id 1\d\d$"):
        encode_text(Text(paths), Wrong(), folder=tmp_path)


def test_a_range_without_text_is_told(paths, tmp_path) -> None:
    with pytest.raises(UserError, match=r"^a\.txt and 1 more: holds no text$"):
        encode_text(Text(paths, begin=1_000), Bytes(), folder=tmp_path)


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch) -> None:
    for module, name in ((running, "_BLOCK"), (running, "_PART"), (text_store, "_CHUNK")):
        monkeypatch.setattr(module, name, 10_000)
    (tmp_path / "a.txt").write_text(("word " * 20 + "\n") * 40_000)  # 4 MB
    tracemalloc.start()
    try:
        store = encode_text(Text((str(tmp_path / "a.txt"),)), Bytes(), folder=tmp_path, workers=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store.tokens) == 4_040_000 and peak < 2.5e6  # the digest of a file reads 1 MB at a time
