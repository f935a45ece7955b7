import json
import logging
import shutil

import numpy as np
import pytest

from transformer.config import UserError
from transformer.data import cache
from transformer.data.cache import TokenCache, tokenize
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer

SOURCE = ["the dog runs", "", "a house", "  \u3000 ", "the red dog 😀 sees a house", "x"] * 10
TARGET = ["der Hund läuft", "leer", "ein Haus", "nichts", "der rote Hund sieht ein Haus", ""] * 10


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SOURCE + TARGET, vocab_size=320)


@pytest.fixture
def parallel(tmp_path):
    for name, lines in (("a.en", SOURCE), ("a.de", TARGET)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de"))


def contents(made):
    return [(made.source(i).tolist(), made.target(i).tolist()) for i in range(len(made))]


def test_holds_the_pieces_of_every_line(tokenizer, parallel, tmp_path):
    made = tokenize(parallel, tokenizer, folder=tmp_path)
    blank = [line if line.strip() else "" for line in SOURCE]
    expected = list(zip(tokenizer.encode(blank), tokenizer.encode(TARGET), strict=True))
    assert contents(made) == expected
    assert made.source_lengths.tolist() == [len(s) for s, _ in expected]
    assert made.target_lengths.tolist() == [len(t) for _, t in expected]
    assert made.source_lengths.dtype == made.target_lengths.dtype == np.int32
    assert made.source_tokens.dtype == np.dtype("<u2")
    assert made.source(1).size == made.source(3).size == made.target(5).size == 0
    with pytest.raises(ValueError):  # a view into a file opened for reading
        made.source(0)[0] = 1


def test_made_once_and_keyed_by_content(tokenizer, parallel, tmp_path, monkeypatch):
    made = tokenize(parallel, tokenizer, folder=tmp_path / "cache")
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    moved = Parallel(*(shutil.copy(path, elsewhere) for path in parallel[:2]))
    other = Tokenizer.train(SOURCE + TARGET, vocab_size=321)
    assert tokenize(parallel, other, folder=tmp_path / "cache").path != made.path
    (elsewhere / "a.de").write_text("\n".join([*TARGET[:-1], "neu"]), encoding="utf-8")
    assert tokenize(moved, tokenizer, folder=tmp_path / "cache").path != made.path
    shutil.copy(parallel.target, elsewhere)
    monkeypatch.setattr(cache, "_build", None)
    assert tokenize(moved, tokenizer, folder=tmp_path / "cache").path == made.path


def test_processes_change_nothing(tokenizer, parallel, tmp_path, monkeypatch):
    plain = tokenize(parallel, tokenizer, folder=tmp_path / "plain", workers=1)
    monkeypatch.setattr(cache, "_CHUNK", 3)
    monkeypatch.setattr(cache, "_SMALL", 6)
    monkeypatch.setattr(Tokenizer, "encode", None)  # the children do it all: they import the module afresh
    many = tokenize(parallel, tokenizer, folder=tmp_path / "many", workers=2)
    assert contents(many) == contents(plain)
    for name in ("source.tokens", "target.tokens", "source.offsets.npy", "target.offsets.npy", "meta.json"):
        assert (many.path / name).read_bytes() == (plain.path / name).read_bytes()


def test_large_vocabularies_take_four_bytes(parallel, tmp_path):
    class Wide:
        vocab_size, sha256 = 70_000, "wide"

        def encode(self, lines):
            return [[69_999] * len(line.split()) for line in lines]

    made = tokenize(parallel, Wide(), folder=tmp_path)
    assert made.source_tokens.dtype == np.dtype("<u4") and made.source(0).tolist() == [69_999] * 3
    Wide.vocab_size, Wide.sha256 = 65_536, "edge"
    assert tokenize(parallel, Wide(), folder=tmp_path).source_tokens.dtype == np.dtype("<u2")


def test_an_empty_corpus(tokenizer, tmp_path):
    (tmp_path / "empty.tsv").touch()
    made = tokenize(Parallel(str(tmp_path / "empty.tsv")), tokenizer, folder=tmp_path)
    assert len(made) == 0 and made.source_lengths.shape == (0,)


def test_errors_leave_nothing_behind(tokenizer, parallel, tmp_path):
    with open(parallel.target, "a", encoding="utf-8") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="61"):
        tokenize(parallel, tokenizer, folder=tmp_path / "cache")
    assert list((tmp_path / "cache/tokens").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "gone", "mark"])
def test_a_damaged_cache_is_made_again(tokenizer, parallel, tmp_path, caplog, damage):
    made = tokenize(parallel, tokenizer, folder=tmp_path)
    expected = contents(made)
    if damage == "cut":
        tokens = made.path / "target.tokens"
        tokens.write_bytes(tokens.read_bytes()[:-2])
    elif damage == "gone":
        (made.path / "source.offsets.npy").unlink()
    else:
        (made.path / "meta.json").unlink()
    with caplog.at_level(logging.WARNING, "transformer"):
        again = tokenize(parallel, tokenizer, folder=tmp_path)
    assert "damaged" in caplog.text
    assert contents(again) == expected == contents(TokenCache(again.path))
    assert json.loads((again.path / "meta.json").read_text())["pairs"] == len(SOURCE)
