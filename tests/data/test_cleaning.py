"""The default cleaning rule: its effect on single texts, and that all users of the rule agree."""

import gzip
import json
import os
import re
import time
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer.config import UNK, Config, DataConfig, UserError
from transformer.data import cleaning, normalizer
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer, tokenizer
from transformer.data.tokens import tokenize

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
WHITE = [*[c for c in map(chr, range(0x3001)) if c.isspace()], "\u2581"]
BLANK = ["\u115f", "\u1160", "\u3164", "\uffa0", "\u2800"]
NOTHING = [*"\u00ad\u034f\u200b\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\x00\x1b"]
TRICKY = st.sampled_from(
    [
        *[*WHITE, *BLANK, *NOTHING, *"\u200c\u200d\u180e\u0301\u0323\u0302\u1161\u11ab\U000e0067\U000e007f"],
        *"aeE1 \u00e9\u212b\ufb01\u00b2\u00bd\u00b4\uff28\u3131\u0915\u094d\u0647\u1820\u2764\ufe0f\u2122\ufdfa",
        *["\U0001f3f4", "\U0001f469", "\U0001f3fd", FAMILY, SCOTLAND],
    ]
)
TEXT = st.lists(TRICKY | st.characters(codec="utf-8"), max_size=12).map("".join)


@pytest.fixture(scope="module")
def trained():
    words = ["der", "Hund", "l\u00e4uft", "the", "dog", "runs", "120", "m\u00b2", "\u20ac"]
    lines = [" ".join((words * 2)[i % 9 : i % 9 + 5]) for i in range(100)]
    return Tokenizer.train(lines, vocab_size=310, normalization="clean")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        *[(f"{c}a{c}{c}b c{c} ", "a b c") for c in (*WHITE, *BLANK)],
        *[(f"{c}a{c}b {c} c{c}", "ab c") for c in NOTHING],
        ("\uff28\uff45 \ufb01 \u2460 10\u00b2 \u2026", "He fi 1 102 ..."),
        ("e\u0301 \u1112\u1161\u11ab e\u0302\u0323", "\u00e9 \ud55c \u1ec7"),
        ("e\u200b\u0301", "\u00e9"),  # the removed character no longer separates them
        ("Auf\u200clage \u200d a\u200db", "Auflage ab"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),  # Persian
        ("\u0645\u06cc\u200c\u200b\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("\u0645\u06cc\u200c \u062e", "\u0645\u06cc \u062e"),
        ("\u0915\u094d\u200d\u0937 \u0915\u094d\u200c\u0937", "\u0915\u094d\u200d\u0937 \u0915\u094d\u200c\u0937"),
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"),  # Sinhala
        ("\u0d28\u0d4d\u200d", "\u0d28\u0d4d\u200d"),  # Malayalam, at the end of a word
        ("\u1820\u180e\u1820 a\u180eb", "\u1820\u180e\u1820 ab"),  # Mongolian
        (f"{FAMILY} \U0001f469\u200d", f"{FAMILY} \U0001f469"),
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\ufe0f\u200d\U0001f525"),
        ("\U0001f469\U0001f3fd\u200d\u2695\ufe0f", "\U0001f469\U0001f3fd\u200d\u2695\ufe0f"),
        (f"{SCOTLAND} a\U000e0067b", f"{SCOTLAND} ab"),
        ("\u0600\u0661", "\u0600\u0661"),  # a format character that shows
        (" \u200b\u3000\ufeff", ""),
    ],
)
def test_sources(text, clean):
    assert cleaning.source(text) == clean


@settings(deadline=None)
@given(TEXT)
def test_to_clean_once_more_changes_nothing(text):
    for rule in (cleaning.source, cleaning.target):
        assert rule(rule(text)) == rule(text)
        assert rule(f" {text}\u00a0") == rule(text)
    assert cleaning.source(cleaning.target(text)) == cleaning.source(text)


@settings(deadline=None)
@given(TEXT)
def test_a_target_changes_in_composition_and_white_space_alone(text):
    clean = cleaning.target(text)
    assert clean.split() == unicodedata.normalize("NFC", text).replace("\u2581", " ").split()
    assert not re.search(r"^\s|\s$|\s\s|[^\S ]|\u2581", clean)


@settings(deadline=None)
@given(TEXT)
def test_a_source_keeps_what_shows(text):
    """Cleaning keeps all visible characters of the compatibility form."""

    def shown(text):
        letters = [c for c in unicodedata.normalize("NFKD", text) if not c.isspace() and c.isprintable()]
        return [c for c in letters if c not in (*BLANK, *NOTHING, "\u2581")]

    clean = cleaning.source(text)
    assert sorted(shown(clean)) == sorted(shown(text))
    assert not re.search(r"^\s|\s$|\s\s|[^\S ]", clean)


@settings(deadline=None)
@given(TEXT, st.frozensets(TRICKY, max_size=8))
def test_a_prefix_keeps_what_the_model_writes(text, known):
    clean = cleaning.prefix(text, known)
    words = clean.removesuffix(" ")
    behind = cleaning.prefix(f"{text}x", {*known, "x"})  # the same prefix when the text goes on
    assert clean == behind.removesuffix("x") and words == words.rstrip()
    assert cleaning.prefix(clean, known) == clean
    assert cleaning.prefix(f"{text} ", known) == (f"{words} " if words else "")
    assert cleaning.prefix(text, ()).split() == cleaning.source(text).split()
    written = set(cleaning.target(text))
    assert cleaning.prefix(text, written).split() == cleaning.target(text).split()


def test_prefixes():
    known = set("Er hat10m\u00b2")
    assert cleaning.prefix("\u3000\uff25r  hat\u00a0\t", known) == "Er hat "
    assert cleaning.prefix("10 m\u00b2 \u00b3", known) == "10 m\u00b2 3"
    assert [cleaning.prefix(text, known) for text in ("", " ", "\u200b ", "\ufeffE")] == ["", "", "", "E"]


@pytest.mark.parametrize("c", [*NOTHING, "\u200d", "\u200c", "\u180e", "\U000e0067"])
def test_what_is_removed_from_a_prefix_takes_no_space_along(c):
    known = set("Er hat")
    for text in (f"Er {c}", f"Er{c} ", f"Er {c} ", f"Er{c}\u2581", f"{c} Er \u00a0{c}{c}"):
        assert cleaning.prefix(text, known) == "Er "
    assert cleaning.prefix(f"Er{c}", known) == "Er"


def test_marks_in_any_number_are_sorted_in_linear_time():
    few = "x\u0323\u0344e\u0301\u0323\u0301\u0f73\u2764\ufe0f\u3099\u0323" * 9 + "\u0301\u0323\u0344" * 50
    many = "e" + "\u0301\u0323" * 200_000 + "x" + "\u0323\u0301" * 200_000
    for rule, form in ((cleaning.source, "NFKC"), (cleaning.target, "NFC")):
        assert rule(few) == unicodedata.normalize(form, few)
        start = time.process_time()
        assert rule(many).count("\u0301") == 400_000
        assert time.process_time() - start < 20  # an insertion sort takes half an hour


def test_the_cases_of_white_space_are_one_source(trained):
    lines = [
        *["He paid 45 dollars.", " He paid 45 dollars.", "He paid 45 dollars. ", "He  paid  45  dollars."],
        *["He\u00a0paid 45 dollars.", "He\tpaid 45 dollars.", "\ufeffHe paid 45 dollars."],
        *["He paid 45 dollars.\u200e", "\u2060He paid 45 dollars.", "He paid 45\u202fdollars."],
        "\uff28\uff45 paid 45 dollars.",
    ]
    assert len({tuple(ids) for ids in trained.encode(lines)}) == 1
    assert trained.decode(trained.encode(lines)) == lines[:1] * 11


# ---- Inside a SentencePiece model -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("\ufdfa")
def test_the_model_file_alone_cleans_alike(trained, text):
    """Other programs have the model file without our code. Its table has no context: it keeps joiners and tags, and
    composes one character at a time. The test skips such texts."""
    marks = sum(unicodedata.combining(c) > 0 for c in unicodedata.normalize("NFKD", text))
    if re.search("[\u200c\u200d\u180e\U000e0001\U000e0020-\U000e007f\x00]", text) or marks > 1:
        return
    # Skip texts in which a joiner or mark meets its letter only after the characters between them are removed.
    if unicodedata.normalize("NFKC", "".join(map(cleaning.source, text))) != "".join(map(cleaning.source, text)):
        return
    for side in ("source", "target"):
        theirs = sentencepiece.SentencePieceProcessor(model_proto=trained.model_of(side))
        assert [theirs.encode(text)] == trained.encode([text], side)


@settings(deadline=None)
@given(st.characters(codec="utf-8", exclude_characters="\x00"))
def test_each_character_and_its_parts_in_the_model_file(trained, c):
    if re.search("[\u200c\u200d\u180e\U000e0001\U000e0020-\U000e007f]", c):
        return
    for side in ("source", "target"):
        theirs = sentencepiece.SentencePieceProcessor(model_proto=trained.model_of(side))
        for text in (c, f"a {c}b", unicodedata.normalize("NFD", c)):
            assert [theirs.encode(text)] == trained.encode([text], side)


def test_a_target_is_not_distorted(trained):
    lines = ["10 m\u00b2", "\uff28\uff45", "\ufb01\u200bx", "Auf\u00adlage\u200e"]
    assert trained.decode(trained.encode(lines, "target")) == lines
    assert trained.decode(trained.encode(lines, "source")) == ["10 m2", "He", "fix", "Auflage"]
    assert trained.round_trip_rate(lines, "target") == 1 and trained.round_trip_rate(lines, "source") == 0
    assert trained.decode(trained.encode([" a\u00a0 e\u0301 "], "target")) == ["a \u00e9"]


def test_the_rule_is_read_from_the_model_and_stays_its_own(trained):
    assert normalizer.read(trained.model).name == cleaning.RULE
    assert Tokenizer(trained.model).encode(["\uff28\u200bund"]) == trained.encode(["Hund"])
    for name in ("identity", "nfkc", "nmt_nfkc"):
        lines = ["der Hund l\u00e4uft"] * 50
        made = Tokenizer.train(lines, vocab_size=275, normalization=name)
        assert normalizer.read(made.model).name == name
        theirs = sentencepiece.SentencePieceProcessor(model_proto=made.model)
        for side in ("source", "target"):
            assert made.model_of(side) == made.model
            assert made.encode([" \ufb01\u200b  x "], side) == [theirs.encode(" \ufb01\u200b  x ")]
    other = normalizer.Normalizer(cleaning.RULE.replace("1", "99"))
    with pytest.raises(UserError, match=r"^x: its rule 'transformer.clean.99' is that of another version"):
        Tokenizer(normalizer.replace(trained.model, other), "x")


def test_a_normalizer_is_replaced_and_nothing_else(trained):
    given = normalizer.read(trained.model)
    other = normalizer.Normalizer("x", b"\x80" * 300, False, False, False)
    changed = normalizer.replace(trained.model, other)
    assert normalizer.read(changed) == other
    assert normalizer.replace(changed, given) == trained.model


def test_characters_that_no_piece_holds_are_counted(trained):
    assert trained.unknown(["the dog", "", "\uff44og\u200b 10 \u00b2"], 1) is None
    # Only targets had U+00B2; in a source it becomes 2, which is known.
    assert trained.unknown(["the \u6f22", "dog", "\u6f22\u0416\u0301 \U0001f600"], 7) == (
        "line 7: the first of 2 such lines; 5 characters were never seen in training: "
        "\u6f22 (U+6F22), \u0416 (U+0416), U+0301, \U0001f600 (U+1F600)"
    )
    assert trained.unknown(["x \u6f22", "\u202e"], 1) is not None
    plain = Tokenizer.train(["der Hund"] * 50, vocab_size=268)
    assert plain.unknown(["d\x1b", "\u202e"], 1) == (
        "line 1: the first of 2 such lines; 2 characters were never seen in training: U+001B, U+202E"
    )
    assert plain.unknown(["Hund", "Q"], 1) == "line 2: 1 character was never seen in training: Q (U+0051)"
    assert plain.unknown(["".join(map(chr, range(0x4E00, 0x4E40)))], 1).endswith("\u4e09 (U+4E09), and 54 more")
    assert UNK not in plain.encode(["Q"])[0]


def test_training_reads_each_side_by_its_rule(tmp_path):
    pairs = ["\uff44og\u00a0m\u00b2\tder\u00a0Hund 10 m\u00b2", "the \u200bdog\tdas\u2003Tier", "\u200b\tnichts"] * 40
    (tmp_path / "a.tsv").write_text("".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    config, parallel = DataConfig(vocab_size=300, cache_dir=str(tmp_path)), Parallel(str(tmp_path / "a.tsv"))
    assert config.normalization == "clean"
    made = tokenizer(config, (parallel,))
    assert "\u00b2" in made.characters and not made.characters & {"\uff44", "\u00a0", "\u200b", "\u2003"}
    tokens = tokenize(parallel, made, folder=tmp_path, workers=1)
    assert made.decode([tokens.source(i) for i in range(3)]) == ["dog m2", "the dog", ""]
    assert made.decode([tokens.target(i) for i in range(3)]) == ["der Hund 10 m\u00b2", "das Tier", "nichts"]
    # Another rule gives another tokenizer, and another token store with another key.
    plain = tokenizer(DataConfig(vocab_size=300, cache_dir=str(tmp_path), normalization="identity"), (parallel,))
    assert plain.sha256 != made.sha256 and "\uff44" in plain.characters
    assert tokenize(parallel, plain, folder=tmp_path, workers=1).text != tokens.text


def test_text_that_is_clean_gives_the_same_pieces_as_without_a_rule(trained):
    """So the rule changes nothing for clean text such as the quickstart's."""
    lines = [f"the dog {i} runs" for i in range(50)]
    clean, plain = (Tokenizer.train(lines, vocab_size=290, normalization=name) for name in ("clean", "identity"))
    assert [clean.piece(i) for i in range(290)] == [plain.piece(i) for i in range(290)]
    assert clean.encode(lines) == clean.encode(lines, "target") == plain.encode(lines)


@pytest.mark.skipif("TRANSFORMER_DATA" not in os.environ, reason="TRANSFORMER_DATA is not set")
def test_of_multi30k_only_white_space_changes():
    for path in sorted(Path(os.environ["TRANSFORMER_DATA"], "multi30k/raw").glob("*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        assert all(cleaning.source(line) == cleaning.target(line) == cleaning.spaces(line) for line in lines)


def test_a_config_without_the_field_and_one_that_says_identity():
    assert Config().data.normalization == "clean"
    assert json.loads(json.dumps(DataConfig().__dict__))["normalization"] == "clean"
