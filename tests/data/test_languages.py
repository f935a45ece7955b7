from __future__ import annotations

import itertools
import os
import random
import re

import pytest

from transformer.config import DataConfig, UserError
from transformer.data.languages import Named, doubts
from transformer.data.text import Parallel, read_pairs
from transformer.data.tokenizer import Tokenizer, tokenizer
from transformer.data.tokens import tokenize

WORDS = {
    **{"red": "rot", "blue": "blau", "big": "groß", "small": "klein", "old": "alt", "new": "neu", "cat": "Katze"},
    **{"dog": "Hund", "house": "Haus", "tree": "Baum", "car": "Auto", "sees": "sieht", "likes": "mag"},
}


def pairs(count, seed=0, translate=WORDS.get):
    draw = random.Random(seed)
    sources = [draw.choices(list(WORDS), k=draw.randint(3, 9)) for _ in range(count)]
    return [(" ".join(words), " ".join(map(translate, words))) for words in sources]


def exchanged(text):
    return [(target, source) for source, target in text]


@pytest.fixture(scope="module")
def pieces():
    return Tokenizer.train([side for pair in pairs(300, seed=9) for side in pair], vocab_size=330)


@pytest.fixture
def named(pieces, tmp_path):
    """`named("a.tsv", pairs)` returns a corpus."""

    def named(name, text):
        (tmp_path / name).write_text("".join("\t".join(pair) + "\n" for pair in text), encoding="utf-8")
        return Named(name, tokenize(Parallel(str(tmp_path / name)), pieces, folder=tmp_path, workers=1))

    return named


def test_nothing_is_said_of_text_that_is_right(named):
    train, other, dev = named("a.tsv", pairs(300)), named("b.tsv", pairs(50, 1)), named("dev.tsv", pairs(20, 2))
    assert doubts([train], dev) == doubts([train, other], dev) == doubts([train, other], None) == []
    assert doubts([train], None) == []


def test_exchanged_columns_are_named(named):
    good, bad, dev = named("a.tsv", pairs(300)), named("b.tsv", exchanged(pairs(50, 1))), named("dev.tsv", pairs(20, 2))
    told = r"^b\.tsv: its source reads like the target of dev\.tsv, and its target like the source there; exchange"
    with pytest.raises(UserError, match=told) as error:
        doubts([bad], dev)
    assert "\n" not in str(error.value)
    # One exchanged corpus among others may be intended. Without a development set, the largest corpus is the reference.
    for train, known in itertools.product(([good, bad], [bad, good]), (dev, None)):
        (line,) = doubts(train, known)
        assert re.match(told if known else told.replace("dev", "a"), line)
        assert line.endswith("unless you want both directions")
    # The error is symmetric: the development set may be the wrong one.
    with pytest.raises(UserError, match=r"^a\.tsv: its source reads like the target of dev\.tsv, .*in one of them"):
        doubts([good], named("dev.tsv", exchanged(pairs(20, 2))))


def test_both_directions_in_one_corpus_are_no_exchange(named):
    mixed = named("both.tsv", pairs(200) + exchanged(pairs(200)))
    assert doubts([mixed], named("dev.tsv", pairs(20, 2))) == []


@pytest.mark.parametrize("count", [5, 20, 300])
@pytest.mark.parametrize(
    "make",
    [lambda words: words, lambda words: words[::-1], lambda words: words[:1]],
    ids=["copy", "reverse", "shorten"],
)
def test_two_sides_in_one_language_are_never_taken_for_exchanged(named, make, count):
    def corpus(name, count, seed):
        text = [(source, " ".join(make(source.split()))) for source, _ in pairs(count, seed)]
        return named(f"{name}.tsv", text), named(f"exchanged-{name}.tsv", exchanged(text))

    for seed in range(5):
        for train, dev in itertools.product(corpus("train", 300, seed), corpus("dev", count, 50 + seed)):
            for told in doubts([train], dev):
                assert "pairs are the same text" in told


def test_one_side_in_the_wrong_language_is_told(named):
    dev, (english, german) = named("dev.tsv", pairs(20, 2)), zip(*pairs(100, 3), strict=True)
    other_english, other_german = zip(*pairs(100, 4), strict=True)
    wrong = named("a.tsv", list(zip(english, other_english, strict=True)))
    assert doubts([wrong], dev) == ["a.tsv: its source and its target both read like the source of dev.tsv"]
    wrong = named("b.tsv", list(zip(other_german, german, strict=True)))
    assert doubts([wrong], dev) == ["b.tsv: its source and its target both read like the target of dev.tsv"]


def test_a_side_given_twice(named):
    copied = named("copied.tsv", [(source, source) for source, _ in pairs(100)] + [(" ", "rot"), ("", "")])
    good, dev = named("a.tsv", pairs(100)), named("dev.tsv", pairs(20, 2))
    with pytest.raises(UserError, match=r"^copied\.tsv: source and target are the same text in all 100 pairs, unlike"):
        doubts([copied], dev)
    told = "copied.tsv: 100 of 102 pairs are the same text on both sides"
    assert doubts([copied], None) == [told]  # copying may be the task
    assert doubts([good, copied], dev) == [told]  # some people add copied text on purpose
    copying = named("same.tsv", [(source, source) for source, _ in pairs(20, 2)])
    assert doubts([copied], copying) == [told, "same.tsv: 20 of 20 pairs are the same text on both sides"]
    assert doubts([good], copying) == ["same.tsv: 20 of 20 pairs are the same text on both sides"]


@pytest.mark.parametrize(("same", "warned"), [(50, False), (51, True)])
def test_more_than_half_the_pairs(named, same, warned):
    text = pairs(100)
    half = named("half.tsv", [(source, source) for source, _ in text[:same]] + text[same:])
    assert doubts([half], None) == ["half.tsv: 51 of 100 pairs are the same text on both sides"] * warned


def test_too_little_text_says_nothing(named):
    dev = named("dev.tsv", pairs(20, 2))
    assert doubts([named("b.tsv", [("", "")])], dev) == []
    assert doubts([named("c.tsv", exchanged(pairs(2)))], named("d.tsv", [("1 2 3", "4 5 6")])) == []


# ---- Real text ------------------------------------------------------------------------------------------------------


def real(languages):
    """The corpora of two languages: name -> paths of the two sides."""
    places = {f"multi30k {name}": f"multi30k/raw/{name}.{{}}.gz" for name in ("train", "val")}
    if languages == ("en", "de"):
        places |= {name: f"wmt_mini/{name}.{{}}.gz" for name in ("chat", "europarl", "news", "tatoeba", "ted")}
    if languages == ("en", "fr"):
        places["tatoeba"] = "tatoeba_en_fr/tatoeba.{}.gz"
    if languages[0] == "en":
        places |= {f"news{year}": f"newstest/newstest{year}.en-{languages[1]}.{{}}" for year in (2013, 2014)}
    root = os.environ["TRANSFORMER_DATA"]
    return {name: [f"{root}/{place.format(side)}" for side in languages] for name, place in places.items()}


@pytest.mark.skipif("TRANSFORMER_DATA" not in os.environ, reason="TRANSFORMER_DATA names no folder of corpora")
@pytest.mark.parametrize(
    ("languages", "vocab_size", "lines"),
    [
        (("en", "fr"), 1_000, 1_500),
        *(
            pytest.param(languages, vocab_size, 20_000, marks=pytest.mark.slow)
            for languages in (("en", "de"), ("en", "fr"), ("de", "fr"))
            for vocab_size in (1_000, 8_000)
        ),
    ],
)
def test_real_text(tmp_path, report, languages, vocab_size, lines):
    """Try each corpus as training text with each as development set, whole or 100 lines: exchanged sides are always
    found, and others never."""
    corpora = {"right": {}, "small": {}, "exchanged": {}}
    for name, paths in real(languages).items():
        text = [pair for pair in itertools.islice(read_pairs(Parallel(*paths)), lines) if "\t" not in "".join(pair)]
        for kind, own in (("right", text), ("small", text[:: len(text) // 100][:100]), ("exchanged", exchanged(text))):
            path = tmp_path / f"{name} {kind}.tsv"
            path.write_text("".join("\t".join(pair) + "\n" for pair in own), encoding="utf-8")
            corpora[kind][name] = Parallel(str(path))
    config, tried = DataConfig(vocab_size=vocab_size, cache_dir=str(tmp_path)), 0
    for learned in ("multi30k train", "tatoeba"):
        if learned not in corpora["right"]:
            continue
        pieces = tokenizer(config, (corpora["right"][learned],))
        tokens = {
            (name, kind): Named(name, tokenize(own, pieces, folder=tmp_path, workers=1))
            for kind, of_kind in corpora.items()
            for name, own in of_kind.items()
        }
        for train, known, size in itertools.product(corpora["right"], corpora["right"], ("right", "small")):
            if train == known:
                continue
            dev = tokens[known, size]
            assert doubts([tokens[train, "right"]], dev) == [], (train, known, size)
            with pytest.raises(UserError, match=f"^{train}: its source reads like the target of {known}"):
                doubts([tokens[train, "exchanged"]], dev)
            tried += 1
    report(f"{'-'.join(languages)}, {vocab_size:,} pieces: exchanged sides found in all {tried} pairs of corpora")
