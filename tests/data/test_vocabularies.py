"""Vocabularies spell every text exactly, whatever is in it, and refuse files of other kinds in one line."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, TextConfig, UserError
from transformer.data import vocabularies
from transformer.data.running import Text, texts
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabularies import ByteLevel, Bytes, Characters, SentencePiece, Vocabulary, load, read
from transformer.data.vocabulary_training import vocabulary

DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefghé", k=DRAW.randint(2, 6))) for _ in range(60)]
LINES = ["  " * DRAW.randint(0, 3) + " ".join(DRAW.choices(WORDS, k=8)) for _ in range(300)]


@functools.cache
def byte_level_content(end: str = "<|endoftext|>", size: int = 330) -> bytes:
    """A tokenizer.json as GPT-2's, of fewer pieces."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def trained() -> SentencePiece:
    return SentencePiece(Tokenizer.train(LINES, vocab_size=400, running=True).model)


KINDS = ("bytes", "characters", "sentencepiece", "byte_level")


@pytest.fixture(scope="module")
def all_kinds(trained: SentencePiece) -> dict[str, Vocabulary]:
    made = {"bytes": Bytes(), "characters": Characters("".join(LINES) + "\n"), "sentencepiece": trained}
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        return made
    return made | {"byte_level": ByteLevel(byte_level_content())}


# Characters that have a meaning in one of the libraries.
ODD = ["▁", "\n", "\r\n", "\t", "\0", "<s>", "<unk>", "<0x0A>", "<|endoftext|>", "⁇", "\ufffd", "\u2028", "é", "日"]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*ODD, " ", "  ", *WORDS[:5]])), max_size=12).map(
    "".join
)


@given(text=TEXT)
@example(text="")
@example(text=" \n\n ▁▁ a▁\n")
@settings(max_examples=150, deadline=None)
def test_every_text_is_kept_exactly(all_kinds, text: str) -> None:
    for kind, pieces in all_kinds.items():
        if kind == "characters":
            pieces = Characters(text)
        ids = pieces.encode(text)
        assert pieces.decode(ids) == text, kind
        assert pieces.spell(ids) == text.encode()
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not set(ids.tolist()) & {*pieces.banned, pieces.end}  # a text never ends itself
        assert int(pieces.byte_lengths[ids].sum()) == len(text.encode())
        names = pieces.pieces(ids)
        assert len(names) == len(ids) and all(name.isprintable() and name for name in names)


@given(ids=st.lists(st.integers(-5, 500), max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_ids_are_decoded(all_kinds, ids: list[int]) -> None:
    for pieces in all_kinds.values():
        assert pieces.decode(ids) == pieces.decode(np.array(ids, np.int64))
        assert pieces.decode([pieces.begin, pieces.end, -1, pieces.size, 10**12]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_read_back_from_its_file(all_kinds, kind: str, tmp_path: Path) -> None:
    if kind not in all_kinds:
        pytest.skip("the package tokenizers is not installed")
    pieces = all_kinds[kind]
    name, content = pieces.file
    assert name in vocabularies.FILES
    (tmp_path / "any name").write_bytes(content)
    for again in (read(name, content), load(tmp_path / "any name")):
        assert (again.file, again.sha256, again.size, again.banned) == (
            (name, content),
            pieces.sha256,
            pieces.size,
            pieces.banned,
        )
        text = "\n".join(LINES[:20])
        assert again.encode(text).tolist() == pieces.encode(text).tolist()


def test_the_ids_of_characters_and_bytes() -> None:
    pieces = Characters("hello\n")
    assert (pieces.begin, pieces.end, pieces.banned, pieces.size) == (BOS, EOS, (PAD, BOS, UNK), 9)
    assert pieces.encode("ole\n").tolist() == [8, 7, 5, 4]  # \n e h l o, after the special ids
    assert pieces.encode("hex").tolist() == [6, 5, UNK] and pieces.decode([6, 5, UNK]) == "he\ufffd"
    assert pieces.missing("hexx!") == {"x": 2, "!": 1} and not pieces.missing("hello\n")
    assert pieces.pieces([0, 1, 2, 3, 4, 5]) == [*SPECIALS, "<0x0A>", "e"]
    assert Bytes().size == 260 and Bytes().encode("é").tolist() == [4 + 0xC3, 4 + 0xA9]
    assert Bytes().decode([4 + 0xC3]) == "\ufffd"
    for wrong in (9, -1, 10**30):
        with pytest.raises(UserError, match=rf"^ids hold {wrong}: must be from 0 to 8$"):
            pieces.pieces([4, wrong])


@pytest.mark.parametrize("wrong", [None, 5, "4", ["4"], [4.5], [[4]], np.ones((1, 2), int), np.ones(2)], ids=repr)
def test_what_is_no_list_of_ids_is_named(wrong) -> None:
    for call in (Bytes().decode, Bytes().pieces, Bytes().spell):
        with pytest.raises(UserError, match=r"^ids = .*: give a list of integers$"):
            call(wrong)


def test_pieces_of_running_text(trained: SentencePiece) -> None:
    assert trained.size == 400 and (trained.begin, trained.end) == (BOS, EOS)
    first = WORDS[0]
    # A line does not begin with a space of the model's, and a line break is one piece.
    assert trained.pieces(trained.encode(f"{first}\n\n{first}")).count("<0x0A>") == 2
    assert not trained.pieces(trained.encode(first))[0].startswith("▁")
    assert len(trained.encode(" " * 6)) < 6  # spaces together
    lines = "\n".join(LINES[:30])
    apart = [trained.encode(line) for line in lines.split("\n")]
    assert len(trained.encode(lines)) == sum(map(len, apart)) + 29
    assert trained.missing(f"{first}\n日日") == {"日": 2}


def test_a_model_of_translation_keeps_running_text_as_well(tmp_path: Path) -> None:
    """Its normaliser, which cleans, is replaced; the file that a workdir keeps has the new one."""
    given = Tokenizer.train([line.strip() for line in LINES], vocab_size=400, normalization="clean").model
    (tmp_path / "spm.model").write_bytes(given)
    pieces = load(tmp_path / "spm.model")
    text = "  ﬁ é\u200b \n\u3000x"
    assert pieces.decode(pieces.encode(text)) == text
    assert read(*pieces.file).sha256 == pieces.sha256


def test_special_pieces_of_byte_level_bpe() -> None:
    pieces = ByteLevel(byte_level_content())
    assert pieces.begin == pieces.end == 0 and pieces.banned == ()
    assert len(pieces.encode("a" * 50 + " b")) > 8  # neither cut nor padded
    assert 0 not in pieces.encode("x<|endoftext|>y")
    llama = ByteLevel(byte_level_content("</s>"))
    assert llama.end == llama.begin == 0


def broken(**parts: object) -> bytes:
    return json.dumps(json.loads(byte_level_content()) | parts).encode()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: b"", "not a SentencePiece model; .* wrote, or a file of another kind: characters.json, bytes.json"),
        (lambda: b"PK\x03\x04 torch", "a zip archive, not a SentencePiece model"),
        (lambda: b"{", "not valid JSON"),
        (lambda: b'{"characters": "ba"}', "'characters' must be a string of different characters, sorted"),
        (lambda: b'{"characters": ["a"]}', "'characters' must be a string"),
        (lambda: b'{"characters": ""}', "'characters' must be a string of different characters"),
        (lambda: b'{"characters": "a\\ud800"}', "holds half a surrogate pair, which is not text"),
        (lambda: b'\xef\xbb\xbf{"characters": "ba"}', "'characters' must be a string"),
        (lambda: b'{"pieces": ["a"]}', "'pieces' must be 'bytes'; give a vocabulary of one of the kinds"),
        (lambda: broken(pre_tokenizer={"pretokenizers": 3}), "not a tokenizer.json with byte-level BPE"),
        (lambda: broken(pre_tokenizer={"pretokenizers": None}), "not a tokenizer.json with byte-level BPE"),
        (lambda: b'{"a": 1}', "not a tokenizer.json with byte-level BPE"),
        (lambda: b'{"model": {}, "pre_tokenizer": ["a"]}', "not a tokenizer.json with byte-level BPE"),
        (lambda: b'{"model": {"type": "WordPiece"}}', "not a tokenizer.json with byte-level BPE"),
        (lambda: broken(normalizer={"type": "NFC"}), "its normaliser changes text"),
        (lambda: broken(model={"type": "BPE", "vocab": 3}), "not a tokenizer.json that the package tokenizers reads"),
        (
            lambda: broken(model={"type": "BPE", "vocab": {"a": 0}, "merges": []}, added_tokens=[]),
            "lacks pieces for 255 of the 256",
        ),
        (
            lambda: broken(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
            "puts a space before each text",
        ),
        (lambda: byte_level_content("[SEP]"), r"has no piece for the end of a text; add one of <\|endoftext\|>"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(make, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(make())
    with pytest.raises(UserError, match=told) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_model_without_byte_pieces_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    (tmp_path / "m.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"m\.model: has no byte pieces, .*--byte_fallback=true, or a file of"):
        load(tmp_path / "m.model")
    with pytest.raises(UserError, match=r"^no\.model: no such file$"):
        load("no.model")


def test_without_the_package_tokenizers_one_line_names_it(monkeypatch, tmp_path: Path) -> None:
    spec = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizer\.json: reading it needs tokenizers, .* 'transformer\[hf\]'"):
        load(tmp_path / "tokenizer.json")


def test_half_a_surrogate_pair_is_told(all_kinds) -> None:
    for pieces in all_kinds.values():
        with pytest.raises(UserError, match="half a surrogate pair"):
            pieces.encode("a\ud800")


# ---- The vocabulary of a run ----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> TextConfig:
    (tmp_path / "a.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return TextConfig(text=(str(tmp_path / "a.txt"),), vocab_size=350, cache_dir=str(tmp_path / "cache"))


def test_it_is_made_of_the_training_text_alone(config: TextConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n" * 90 + "ç\n" * 10, encoding="utf-8")
    config = dataclasses.replace(config, pieces="characters")
    train = texts(config).train
    assert train.end == 261  # 90 % of 290 characters
    assert vocabulary(config, train)._characters == ["\n", "a", "b"]


def test_a_trained_one_is_the_same_every_time(config: TextConfig, tmp_path: Path, monkeypatch) -> None:
    first = vocabulary(config, Text(config.text))
    elsewhere = dataclasses.replace(config, cache_dir=str(tmp_path / "other"))
    assert vocabulary(elsewhere, Text(config.text)).file == first.file and first.size == 350
    fewer = dataclasses.replace(config, tokenizer_lines=20)
    assert vocabulary(fewer, Text(config.text)).sha256 != first.sha256
    monkeypatch.setattr(Tokenizer, "train", None)
    assert vocabulary(config, Text(config.text)).file == first.file  # from the cache


def test_a_size_that_the_text_does_not_allow_is_told(config: TextConfig) -> None:
    with pytest.raises(UserError, match=r"^data\.vocab_size = 100000: too large for this text; the largest possible"):
        vocabulary(dataclasses.replace(config, vocab_size=100_000), Text(config.text))
