"""Unusual input text: known cases and random ones. There are as many output lines as input lines, pairs are never
shifted, and unreadable text gives an error in one line that names it."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from transformer.config import DecodeConfig, ModelConfig, UserError
from transformer.data.text import Parallel, count_lines, read_lines, read_pairs
from transformer.data.tokenizer import Tokenizer
from transformer.data.tokens import tokenize
from transformer.inference.shares import translate_share
from transformer.inference.stream import translate_jsonl, translate_stream
from transformer.inference.translator import Translator
from transformer.model import build

WORDS = ["the", "a", "small", "red", "house", "dog", "runs", "ein", "kleiner", "Hund", "läuft", "über", "日本", "🙂"]


@functools.cache
def tokenizer() -> Tokenizer:
    draw = random.Random(0)
    return Tokenizer.train([" ".join(draw.choices(WORDS, k=8)) for _ in range(300)], vocab_size=330)


@functools.cache
def translator() -> Translator:
    """A real translator, with an untrained model."""
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=16, heads=2)
    model = build(config.with_vocabulary(tokenizer().vocab_size))
    decode = DecodeConfig(beam_size=2, max_extra_length=1_000, max_length=6, max_source_length=15, streams=1)
    return Translator(model, model.init(jax.random.key(0)), tokenizer(), decode)


def pairs_of(folder: Path, source: bytes, target: bytes) -> list[tuple[str, str]]:
    (folder / "a.en").write_bytes(source)
    (folder / "a.de").write_bytes(target)
    return list(read_pairs(Parallel(str(folder / "a.en"), str(folder / "a.de"))))


# ---- Text to train on: each oddity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"one\r\ntwo\r\n", ["one", "two"]),  # line ends of Windows
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),  # a byte order mark
        ("one\u2028more\ntwo\u0085\n".encode(), ["one\u2028more", "two\u0085"]),  # other programs end lines here
        (b"one\x0bmore\ntwo\x0c\x1c\n", ["one\x0bmore", "two\x0c\x1c"]),
        (b"one\x00more\ntwo\n", ["one\x00more", "two"]),
        (b"one\n\n\n", ["one", "", ""]),
        (b"one\rmore\ntwo", ["one\rmore", "two"]),  # a line end on old Macs; here within a line
        (b"x" * 1_000_000 + b"\ntwo\n", ["x" * 1_000_000, "two"]),
    ],
)
def test_odd_text_keeps_its_lines(tmp_path: Path, source: bytes, expected: list[str]) -> None:
    target = "".join(f"{i}\n" for i in range(len(expected)))
    pairs = pairs_of(tmp_path, source, target.encode())
    assert pairs == [(text, str(i)) for i, text in enumerate(expected)]
    assert count_lines(tmp_path / "a.en") == len(expected)
    # After tokenising, pair i is still line i.
    cache = tokenize(Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de")), tokenizer(), folder=tmp_path)
    assert len(cache) == len(expected)
    for i in range(len(expected)):
        begin, end = cache.target_offsets[i : i + 2]
        assert tokenizer().decode([cache.target_tokens[begin:end].tolist()]) == [str(i)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (b"one\ntwo \xff\nthree\n", r"a\.en:2: byte 0xff is not valid UTF-8; convert the file first"),
        (b"one\n\xed\xa0\x80\n", r"a\.en:2: byte 0xed is not valid UTF-8"),  # half a surrogate pair
        ("one\ntwo\n".encode("utf-16"), r"a\.en: UTF-16, not plain text; convert it first: iconv -f utf-16 -t utf-8 "),
        ("ein Gru\u00df\n".encode("latin1"), r"a\.en:1: byte 0xdf is not valid UTF-8"),
        (b"one\ntwo\n", r"a\.en has 2 lines but \S+a\.de has 3; line n of one must be the translation"),
        (b"", r"a\.en has 0 lines but \S+a\.de has 3"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path: Path, source: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        pairs_of(tmp_path, source, b"1\n2\n3\n")
    assert "\n" not in str(error.value)


def test_an_archive_cut_short_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"line {i} {random.random()}\n" for i in range(2_000)).encode())
    for size in (len(whole) // 2, len(whole) - 4, 5, 0):
        (tmp_path / "a.en.gz").write_bytes(whole[:size])
        if size == 0:  # an empty file has no lines
            assert list(read_lines(tmp_path / "a.en.gz")) == []
            continue
        with pytest.raises(UserError, match=r"a\.en\.gz:\d+: damaged or not a gzip file"):
            list(read_lines(tmp_path / "a.en.gz"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "one\teins\ntwo zwei\n", r"a\.tsv:2: no tab"),
        ("a.tsv", "one\teins\n\n", r"a\.tsv:2: no tab"),
        ("a.tsv", "1\tone\teins\n", r"a\.tsv:1: 3 columns, but each line must hold source, a tab, target; .*cut -f2,3"),
        ("a.tsv", "one\teins\ntwo\tzw\tei\n", r"a\.tsv:2: 3 columns"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', r"a\.jsonl:2: no field 'target'"),
        ("a.jsonl", '{"en": "a", "de": "b"}\n', r"a\.jsonl:1: no field 'source' \(it has en, de\); set data.fields"),
        ("a.jsonl", '{"source": "a", "target": "b"\n', r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n\n', r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", f'{{"source": "a", "target": "b", "id": {"9" * 5_000}}}\n', r"a\.jsonl:1: not a JSON object"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told) as error:
        list(read_pairs(Parallel(str(tmp_path / name))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["two files", "tsv", "dev"])
def test_exchanged_languages_end_in_one_line(call, tiny, tmp_path: Path, kind: str) -> None:
    config, own = Path(tiny.config).read_text(), tiny.folder
    if kind == "two files":
        named = f"{own}/train.de and {own}/train.en"
        config = (
            config.replace("/train.en", "/train.xx").replace("/train.de", "/train.en").replace("/train.xx", "/train.de")
        )
    elif kind == "tsv":
        named = str(tmp_path / "train.tsv")
        sides = [(own / f"train.{side}").read_text().splitlines() for side in ("de", "en")]
        Path(named).write_text("".join("\t".join(pair) + "\n" for pair in zip(*sides, strict=True)))
        config = config.replace('source=(f"{folder}/train.en",)', f"source=({named!r},)")
        config = config.replace('        target=(f"{folder}/train.de",),\n', "")
    else:
        named = f"{own}/train.en and {own}/train.de"
        config = config.replace("/dev.en", "/dev.xx").replace("/dev.de", "/dev.en").replace("/dev.xx", "/dev.de")
    (tmp_path / "config.py").write_text(config)
    done = call("train.py", "--config", tmp_path / "config.py", "--workdir", tmp_path / "run")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: {named}: its source reads like the target of {own}/dev.")
    assert "Traceback" not in done.err
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda text: text.replace(b"\n", b"\xff\n", 1), "train.en:1: byte 0xff is not valid UTF-8"),
        (lambda text: text[: len(text) // 2], "train.en has "),
        (lambda text: b"", "train.en has 0 lines but "),
    ],
)
def test_training_on_it_ends_in_one_line(call, tiny, tmp_path: Path, harm, told: str) -> None:
    text = (tiny.folder / "train.en").read_bytes()
    (tmp_path / "train.en").write_bytes(harm(text))
    config = Path(tiny.config).read_text().replace('f"{folder}/train.en"', repr(str(tmp_path / "train.en")))
    (tmp_path / "config.py").write_text(config)
    done = call("train.py", "--config", tmp_path / "config.py", "--workdir", tmp_path / "run")
    assert done.code == 2
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (tmp_path / "run/config.json").exists()


# ---- Random text ----------------------------------------------------------------------------------------------------

# All of Unicode, with harmful characters more often than by chance.
ODD = st.sampled_from(
    ["\u2028", "\u0085", "\x00", "\ufeff", "\x1c", "\r", "\t", "▁", "<s>", "</s>", "<pad>", "<unk>", "<0x0A>"]
)
EMOJI = st.sampled_from(["🙂", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽"])
RIGHT_TO_LEFT = st.sampled_from(["שלום", "مرحبا", "\u202eabc\u202c", "\u200f"])
TEXT = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20), ODD, EMOJI)
    | RIGHT_TO_LEFT
    | st.sampled_from(WORDS),
    max_size=8,
).map(" ".join)
LINES = st.lists(TEXT, min_size=100, max_size=100)
HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def content_of(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def answers(content: bytes, lines: list[str]) -> list[str]:
    """The output lines. Checks that there are as many as `lines`, and that blank ones are at the same places."""
    translations = content.decode().split("\n")
    assert translations.pop() == ""
    assert len(translations) == len(lines)
    assert not any(text for text, line in zip(translations, lines, strict=True) if not line.strip())
    return translations


@pytest.mark.slow
def test_as_many_translations_as_lines(report) -> None:
    """10,000 random texts through a real tokenizer, model and search."""
    tried, longest = 0, 0

    @settings(max_examples=110, deadline=None, database=None, suppress_health_check=HEALTH, derandomize=True)
    @given(lines=LINES)
    @example(
        lines=["x" * 100_000, "", " ", "🙂" * 25_000, "a b " * 25_000, "\u202e" + "ש" * 100_000, "\u00a0", "\u3000"]
    )
    def translate(lines: list[str]) -> None:
        nonlocal tried, longest
        target = io.BytesIO()
        assert translate_stream(translator(), io.BytesIO(content_of(lines)), target) == len(lines)
        answers(target.getvalue(), lines)
        tried, longest = tried + len(lines), max(longest, *map(len, lines))

    translate()
    report(f"{tried:,} random texts translated, the longest of {longest:,} characters: as many lines out as in")
    assert tried >= 10_000
    assert longest >= 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OURS = ("source", "prefix", "translation", "score")


@pytest.mark.slow
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=HEALTH, derandomize=True)
@given(
    records=st.lists(
        st.builds(
            lambda others, given: {name: value for name, value in others.items() if name not in OURS} | given,
            st.dictionaries(TEXT, JSON, max_size=3),
            st.fixed_dictionaries({"source": TEXT}, optional={"prefix": TEXT}),
        ),
        max_size=10,
    ),
    spelt=st.booleans(),
)
def test_objects_come_out_with_all_their_fields(records: list[dict], spelt: bool) -> None:
    target = io.BytesIO()
    content = content_of([json.dumps(record, ensure_ascii=spelt) for record in records])
    assert translate_jsonl(translator(), io.BytesIO(content), target) == len(records)
    answered = [json.loads(line) for line in target.getvalue().decode().split("\n")[:-1]]
    assert len(answered) == len(records)
    for record, answer in zip(records, answered, strict=True):
        assert isinstance(answer.pop("translation"), str)
        score = answer.pop("score")
        assert isinstance(score, float) if record["source"].strip() else score is None
        assert answer == record


@pytest.mark.slow
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=HEALTH, derandomize=True)
@given(lines=st.lists(TEXT, max_size=12), number=st.integers(1, 4), data=st.data())
def test_shares_are_put_together_in_order(tmp_path_factory, lines: list[str], number: int, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shares")
    (folder / "in").write_bytes(content_of(lines))
    firsts = []

    def answer(source: io.BytesIO, target: io.BytesIO, first: int) -> int:
        firsts.append(first)
        return translate_stream(translator(), source, target, first)

    order = data.draw(st.permutations(range(number)))
    for share in order:
        assert not (folder / "out").exists()
        translate_share(answer, folder / "in", folder / "out", share, number)
    answers((folder / "out").read_bytes(), lines)
    assert sorted(firsts) == [1 + len(lines) * i // number for i in range(number)]
    assert sorted(path.name for path in folder.iterdir()) == ["in", "out"]


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=HEALTH, derandomize=True)
@given(junk=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=20))
def test_any_bytes_are_lines_to_translate(junk: list[bytes]) -> None:
    target = io.BytesIO()
    assert translate_stream(translator(), io.BytesIO(b"".join(line + b"\n" for line in junk)), target) == len(junk)
    assert target.getvalue().count(b"\n") == len(junk)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=HEALTH, derandomize=True)
@given(lines=st.lists(st.tuples(TEXT, TEXT), max_size=30), end=st.sampled_from(["\n", "\r\n"]), zipped=st.booleans())
def test_pairs_are_read_as_they_were_written(tmp_path_factory, lines, end: str, zipped: bool) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    opened = gzip.open if zipped else open
    names = [str(folder / f"a.{side}{'.gz' if zipped else ''}") for side in ("en", "de")]
    for name, side in zip(names, zip(*lines, strict=True) if lines else ((), ()), strict=True):
        with opened(name, "wb") as file:
            file.write("".join(text + end for text in side).encode())
    # A carriage return before a line feed and a leading byte order mark are not part of the text.
    expected = [tuple(text.removesuffix("\r") if end == "\n" else text for text in pair) for pair in lines]
    if expected:
        expected[0] = tuple(text.removeprefix("\ufeff") for text in expected[0])
    assert list(read_pairs(Parallel(*names))) == expected
    rows = folder / "a.jsonl"
    rows.write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in lines))
    assert list(read_pairs(Parallel(str(rows)))) == [(a.replace("\r\n", " "), b.replace("\r\n", " ")) for a, b in lines]


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(junk=st.binary(max_size=300), kind=st.sampled_from(["tsv", "jsonl", "en", "tsv.gz"]))
def test_any_bytes_are_read_or_named(tmp_path_factory, junk: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("junk") / f"a.{kind}"
    path.write_bytes(junk)
    other = None
    if kind == "en":
        other = path.with_name("b.en")
        other.write_bytes(junk)
    try:
        for pair in read_pairs(Parallel(str(path), other and str(other))):
            assert all(isinstance(side, str) and "\n" not in side for side in pair)
    except UserError as error:
        assert f"a.{kind}" in str(error)
        assert str(error).isprintable()  # so it is one line
