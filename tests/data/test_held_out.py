from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer.data.held_out import HeldOut, held_out_doubts, reference_doubts, seen_doubts, shared
from transformer.data.languages import Named
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer
from transformer.data.tokens import TokenStore, tokenize

WORDS = {"red": "rot", "big": "groß", "old": "alt", "cat": "Katze", "dog": "Hund", "house": "Haus", "sees": "sieht"}
Pairs = list[tuple[str, str]]


def pairs(count: int, seed: int = 0) -> Pairs:
    draw = random.Random(seed)
    sources = [draw.choices(list(WORDS), k=draw.randint(7, 12)) for _ in range(count)]
    return [(" ".join(words), " ".join(map(WORDS.get, words))) for words in sources]


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return Tokenizer.train([side for pair in pairs(300, seed=9) for side in pair], vocab_size=330)


@pytest.fixture(scope="module")
def made(pieces, tmp_path_factory):
    """`made(pairs)` returns their token store."""
    folder: Path = tmp_path_factory.mktemp("held_out")

    def made(text: Pairs) -> TokenStore:
        path = folder / "text.tsv"
        path.write_text("".join("\t".join(pair) + "\n" for pair in text), encoding="utf-8")
        return tokenize(Parallel(str(path)), pieces, folder=folder, workers=1)

    return made


def held_out(made, name: str, text: Pairs) -> HeldOut:
    return HeldOut(name, made(text), *map(list, zip(*text, strict=True)))


# ---- Pairs of the training text --------------------------------------------------------------------------------------

SIDE = st.sampled_from(["", "red", "red cat", "red dog", "big red cat", "x", "Haus", "house house house house"])
TEXT = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXT, TEXT, TEXT)
def test_shared_pairs_are_those_that_occur(made, one: Pairs, other: Pairs, text: Pairs) -> None:
    known = {pair for pair in one + other if all(pair)}
    counts = [sum(pair in known for pair in text), sum(all(pair) for pair in one)]
    assert shared([made(one), made(other)], [made(text), made(one)]) == counts
    assert shared([], [made(text)]) == [0] and shared([made(text)], []) == []


def test_shared_pairs_are_found_in_parts_of_a_large_text(made, monkeypatch) -> None:
    monkeypatch.setattr("transformer.data.held_out._CHUNK", 7)
    train = pairs(100)
    text = [train[99], train[0], *pairs(20, 5), train[50]]
    assert shared([made(train)], [made(text)]) == [sum(pair in set(train) for pair in text)] == [3]
    assert shared([made(pairs(30, 1)), made(train)], [made(train)]) == [100]


def test_nothing_is_said_of_other_text(made) -> None:
    train = [Named("train", made(pairs(300)))]
    dev, test = held_out(made, "dev", pairs(20, 1)), held_out(made, "test", pairs(20, 2))
    assert list(held_out_doubts(train, dev, test)) == list(held_out_doubts(train, None, None)) == []
    # One pair of twenty may occur by chance.
    assert list(held_out_doubts(train, held_out(made, "dev", [*pairs(19, 1), pairs(1)[0]]), None)) == []


@pytest.mark.parametrize("part", [20, 2])
def test_sets_that_were_trained_on_are_told(made, part: int) -> None:
    train = [Named("other", made(pairs(30, 7))), Named("train", made(pairs(300)))]
    text = [*pairs(part), *pairs(20 - part, 1)]
    told = f"{part} of 20 pairs of the development set are in the training text, too, so its scores tell little"
    (line,) = held_out_doubts(train, held_out(made, "dev.en", text), held_out(made, "test.en", pairs(20, 2)))
    assert line.startswith(f"dev.en: {told}") and "\n" not in line
    (line,) = held_out_doubts(train, None, held_out(made, "test.en", text))
    assert line.startswith(f"test.en: {told.replace('development', 'test')}")


def test_a_test_set_that_chooses_the_checkpoint_is_told(made) -> None:
    train, text = [Named("train", made(pairs(300)))], pairs(20, 1)
    (line,) = held_out_doubts(train, held_out(made, "dev.en", text), held_out(made, "test.en", text))
    assert line.startswith("test.en: 20 of 20 pairs of the test set are in the development set, too")


def test_texts_without_another_side_that_were_seen_before_are_told() -> None:
    train, new = [(str(i),) for i in range(100)], [(f"{i}!",) for i in range(20)]
    assert not list(seen_doubts(train, ("dev.tsv", [*train[:1], *new]), None))
    first, second = seen_doubts(train, ("dev.tsv", [*train[:5], *new]), ("test.tsv", [*new[:1], ("?",)]))
    assert first.startswith("dev.tsv: 5 of 25 texts of the development set are in the training text, too, so its")
    assert second.startswith("test.tsv: 1 of 2 texts of the test set are in the development set, too, which chooses")


# ---- References -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "references", "told"),
    [
        (["a"] * 3, ["", " ", "\u3000"], ["3 of 3 references are blank"]),
        (["a", "b", "c"], ["x", "", "z"], ["1 of 3 references are blank"]),
        (["", ""], ["", ""], ["2 of 2 references are blank"]),
        (["a", "", " "], ["x", "y", "z"], ["2 of 3 sources are blank, but their references are not"]),
        (["a", ""], ["x", ""], []),  # a blank reference for a blank source
        (["a", "b"], ["x", "x "], ["2 of 2 references are the same, 'x'"]),
        ([str(i) for i in range(10)], ["x"] * 6 + list("abcd"), ["6 of 10 references are the same, 'x'"]),
        ([str(i) for i in range(10)], ["x"] * 5 + list("abcde"), []),
        (["a", "b", "c"], ["x", "x", "y"], []),
        (["a"], ["x"], []),
        (["a"] * 4, ["\x1b[2J" * 99] * 4, ["4 of 4 references are the same, '\\x1b[2J"]),
    ],
)
def test_references_that_tell_nothing_are_told(sources: list[str], references: list[str], told: list[str]) -> None:
    found = list(reference_doubts("dev.en", sources, references))
    assert len(found) == len(told)
    for line, start in zip(found, told, strict=True):
        assert line.startswith(f"dev.en: {start}") and line.isprintable() and len(line) < 400
