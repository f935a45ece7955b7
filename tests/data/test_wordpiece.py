"""Vocabularies of an encoder alone: WordPiece as BERT splits text, SentencePiece with a mask, files of either kind."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from transformer.config import BOS, EOS, PAD, UNK, PretrainConfig, UserError
from transformer.data.running import pretraining_texts
from transformer.data.text_store import encode_text
from transformer.data.vocabulary_training import encoder_vocabulary
from transformer.data.wordpiece import FILES, SPECIAL_PIECES, MaskedSentencePiece, WordPiece, load, read, tokenizer_json
from transformer.data.wordpiece_training import train_sentencepiece, train_wordpiece

pytest.importorskip("tokenizers")
PIECES = [*SPECIAL_PIECES, "cat", "##s", "the", "don", "'", "t", ",", "caf", "##e", "[", "]", "mask"]
DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefghé", k=DRAW.randint(2, 6))) for _ in range(60)]
LINES = [" ".join(DRAW.choices(WORDS, k=8)) + "." for _ in range(300)]


@pytest.fixture
def vocabulary() -> WordPiece:
    return WordPiece(tokenizer_json(PIECES, lower_case=True))


def names(vocabulary: WordPiece, text: str) -> list[str]:
    return [vocabulary.name(i) for i in vocabulary.encode(text).tolist()]


def test_text_is_split_as_bert_does(vocabulary: WordPiece) -> None:
    assert names(vocabulary, "The  CATS,\tdon't") == ["the", "cat", "##s", ",", "don", "'", "t"]
    assert names(vocabulary, "Café\n\ncat") == ["caf", "##e", "[SEP]", "[SEP]", "cat"]
    assert names(vocabulary, "[MASK] dog") == ["[", "mask", "]", "[UNK]"]  # a special piece never comes from text
    assert vocabulary.decode(vocabulary.encode("the cats\ncafe")) == " the cats\n cafe"
    assert (vocabulary.pad, vocabulary.unk, vocabulary.cls, vocabulary.sep, vocabulary.mask) == (0, 1, 2, 3, 4)
    assert vocabulary.starts.tolist() == [not piece.startswith("##") for piece in PIECES]


def test_characters_without_a_piece_are_counted(vocabulary: WordPiece) -> None:
    assert vocabulary.missing("t,xx\n") == {"x": 2}
    assert vocabulary.missing("T,x") == {"x": 1}  # lower-cased first


def test_a_tokenizer_json_does_not_cut_or_pad(vocabulary: WordPiece) -> None:
    """That of all-minilm-l6-v2 says to pad and to cut at 128."""
    spec = json.loads(vocabulary.file[1])
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {
        **{"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    }
    content = json.dumps(spec).encode()
    assert len(WordPiece(content).encode("cat " * 9)) == 9
    assert WordPiece(content).encode_lines(["cat", "the cat"]) == [[5], [7, 5]]
    assert WordPiece(content).file == ("tokenizer.json", content)


@pytest.mark.parametrize(
    ("pieces", "config", "expected"),
    [
        (PIECES, None, "the cat"),
        (PIECES, {"do_lower_case": False}, "[UNK] cat"),
        ([*PIECES, "The"], None, "The cat"),  # a piece with an upper-case letter
        ([*PIECES, "The"], {"do_lower_case": True}, "the cat"),
    ],
)
def test_a_vocab_txt_is_lower_cased_as_the_file_beside_it_says(
    tmp_path: Path, caplog, pieces, config, expected
) -> None:
    caplog.set_level("INFO", "transformer")
    (tmp_path / "vocab.txt").write_text("\r\n".join(pieces) + "\r\n")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = load(tmp_path / "vocab.txt")
    assert vocabulary.size == len(pieces)
    assert " ".join(names(vocabulary, "The cat")) == expected
    assert ("there is no tokenizer_config.json: text " in caplog.text) == (config is None)
    again = read(*vocabulary.file)
    assert again.sha256 == vocabulary.sha256


def test_transformers_own_tokenizer_agrees(vocabulary: WordPiece, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, content in (vocabulary.file, ("vocab.txt", ("\n".join(PIECES) + "\n").encode())):
        (tmp_path / name).write_bytes(content)
    theirs = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ("The CATS, don't", "cafés 日本 x", "[the]"):
        ids = theirs(text)["input_ids"]
        assert [vocabulary.cls, *vocabulary.encode(text).tolist(), vocabulary.sep] == ids == loaded(text)["input_ids"]
    pair = theirs("the", "cats", return_token_type_ids=True)
    assert dict(loaded("the", "cats", return_token_type_ids=True)) == dict(pair)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "cafe [UNK] [UNK] cat"),
        ({"strip_accents": False}, "café [UNK] [UNK] cat"),
        ({"do_lower_case": False, "strip_accents": True}, "cafe [UNK] [UNK] cat"),
        ({"tokenize_chinese_chars": False}, "cafe 日本 cat"),
        ({"strip_accents": None}, "cafe [UNK] [UNK] cat"),
    ],
)
def test_a_vocab_txt_is_normalised_as_the_file_beside_it_says(tmp_path: Path, options, expected: str) -> None:
    """As `BertTokenizerFast` of transformers. A byte order mark is no part of the first piece."""
    pieces = "\n".join([*PIECES, "cafe", "café", "日本", "本"])
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + pieces.replace("\n本", "").encode())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    assert " ".join(names(load(tmp_path / "vocab.txt"), "café 日本 cat")) == expected
    (tmp_path / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": null}')
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: tokenize_chinese_chars = None: must be true or false"
    ):
        load(tmp_path / "vocab.txt")


def changed(vocabulary: WordPiece, **parts) -> bytes:
    """The tokenizer.json with other parts; `model` is merged into that of the vocabulary."""
    spec = json.loads(vocabulary.file[1])
    return json.dumps(spec | parts | {"model": spec["model"] | parts.get("model", {})}).encode()


def test_special_pieces_never_come_from_text(vocabulary: WordPiece) -> None:
    """Not where words end at spaces alone, and not where the file says that they are ordinary pieces."""
    added = [token | {"special": False} for token in json.loads(vocabulary.file[1])["added_tokens"]]
    spaces = changed(vocabulary, normalizer=None, pre_tokenizer={"type": "WhitespaceSplit"})
    assert names(WordPiece(spaces), "the [MASK] [SEP] dog cat") == ["the", "[UNK]", "[UNK]", "[UNK]", "cat"]
    ordinary = WordPiece(changed(vocabulary, added_tokens=added))
    assert names(ordinary, "the [MASK]") == ["the", "[", "mask", "]"]


def test_rules_that_frame_texts_have_no_effect(vocabulary: WordPiece) -> None:
    """Those of a file may drop all pieces, even where no special pieces are asked for."""
    empty = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
    assert names(WordPiece(changed(vocabulary, post_processor=empty)), "the cat") == ["the", "cat"]
    assert names(WordPiece(b"\xef\xbb\xbf" + vocabulary.file[1]), "the cat") == ["the", "cat"]


def test_a_tokenizer_json_that_can_not_encode_every_text(vocabulary: WordPiece) -> None:
    pieces = json.loads(vocabulary.file[1])["model"]["vocab"]
    without = {name: i for name, i in pieces.items() if name != "[UNK]"}
    panics = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
    for parts, told in (
        ({"model": {"vocab": without}}, r"Missing \[UNK\] token from the vocabulary"),
        ({"model": {"unk_token": "<unk>"}}, r"Missing \[UNK\] token from the vocabulary"),
        ({"normalizer": panics}, "not a tokenizer.json that the package tokenizers reads"),
        ({"model": {"vocab": pieces | {"[MASK]": 3}}, "added_tokens": []}, "have the same id; correct it"),
    ):
        with pytest.raises(UserError, match=told):
            WordPiece(changed(vocabulary, **parts))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_pipe_is_no_vocabulary(tmp_path: Path, name: str) -> None:
    """Reading one may never end."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe or a device, but it is read several times; write it to a file"):
        load(tmp_path / name)


@pytest.mark.parametrize("lower_case", [True, False])
def test_training_is_repeatable(lower_case: bool) -> None:
    """The library alone gives other pieces in each run."""
    lines = [*LINES, "ABC " * 9]
    made = [train_wordpiece(lines, 120, lower_case=lower_case) for _ in range(3)]
    assert len({one.sha256 for one in made}) == 1
    assert made[0].size == 120 and [made[0].name(i) for i in range(5)] == list(SPECIAL_PIECES)
    assert made[0].unk not in np.concatenate([made[0].encode(line) for line in lines])
    assert any("A" in made[0].name(i) for i in range(5, 120)) != lower_case


@pytest.mark.parametrize(("size", "rule"), [(20, "too small .* smallest possible is 24"), (5_000, "too large")])
def test_sizes_that_a_text_does_not_allow(size: int, rule: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.vocab_size = {size}: {rule}"):
        train_wordpiece(LINES, size, lower_case=False)


@pytest.mark.parametrize(("size", "rule"), [(265, "too small .* smallest possible is"), (5_000, "too large .* is")])
def test_sizes_of_sentencepiece_count_the_mask(size: int, rule: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.vocab_size = {size}: {rule} \d+$") as raised:
        train_sentencepiece(LINES, size, lower_case=True)
    nearest = int(str(raised.value).split()[-1])
    assert train_sentencepiece(LINES, nearest, lower_case=True).size == nearest


def test_a_text_of_which_nothing_is_left() -> None:
    with pytest.raises(UserError, match=r"^data\.text: nothing is left of the text once it is normalised"):
        train_wordpiece(["\u0301", "\x7f"], 8, lower_case=True)


def test_lower_case_folds_case_and_only_wordpiece_removes_accents() -> None:
    """As the words of `data.lower_case` say."""
    lines = [f"{line} café cafe" for line in LINES]
    for train, size, accents in ((train_wordpiece, 150, False), (train_sentencepiece, 400, True)):
        upper, lower, plain = train(lines, size, lower_case=True).encode_lines(["CAFÉ", "café", "cafe"])
        assert upper == lower and (lower != plain) == accents


def test_sentencepiece_with_a_mask(tmp_path: Path) -> None:
    vocabulary = train_sentencepiece(LINES, 400, lower_case=True)
    assert (vocabulary.size, vocabulary.mask) == (400, 399)
    assert (vocabulary.pad, vocabulary.cls, vocabulary.sep, vocabulary.unk) == (PAD, BOS, EOS, UNK)
    assert [vocabulary.name(i) for i in (0, 1, 2, 3, 399)] == ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    first, second = vocabulary.encode_lines([LINES[0].upper(), LINES[1]])
    assert vocabulary.encode(f"{LINES[0]}\n{LINES[1]}").tolist() == [*first, EOS, *second]
    assert vocabulary.decode(first) == " " + LINES[0]
    words = np.split(first, np.flatnonzero(vocabulary.starts[first])[1:])
    assert [vocabulary.decode(word) for word in words] == [f" {word}" for word in LINES[0].split()]
    assert vocabulary.missing("é日\n日") == {"日": 2}
    (tmp_path / "x.model").write_bytes(vocabulary.file[1])
    assert load(tmp_path / "x.model").sha256 == read(*vocabulary.file).sha256 == vocabulary.sha256


def test_files_of_other_kinds(tmp_path: Path, vocabulary: WordPiece) -> None:
    spec = json.loads(vocabulary.file[1])
    spec["model"]["vocab"].pop("[MASK]")
    spec["added_tokens"].pop()
    for name, content, told in (
        ("none.json", None, "no such file"),
        ("a.txt", b"some text\n", "not a vocabulary of an encoder; give a vocab.txt or tokenizer.json"),
        ("b.json", b'{"model": {"type": "BPE"}}', "not a tokenizer.json with WordPiece, as BERT has it"),
        ("c.json", b'{"model": {"type": "WordPiece"}}', "not a tokenizer.json that the package tokenizers reads"),
        ("d.json", b"{", "not valid JSON"),
        ("e.json", json.dumps(spec).encode(), "lacks the piece [MASK]; give the vocabulary of a BERT"),
        ("vocab.txt", b"[MASK]\nx\nx\n", "holds the piece 'x' twice; correct it"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            load(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {told}")
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "yes"}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json: do_lower_case = 'yes': must be true or false"):
        load(tmp_path / "vocab.txt")


def test_a_missing_library_is_told(tmp_path: Path, vocabulary: WordPiece, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"^x: reading it needs tokenizers, which is not installed: pip install"):
        WordPiece(vocabulary.file[1], "x")
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    config = PretrainConfig(text=(str(tmp_path / "a.txt"),), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"^data\.pieces = 'wordpiece' needs tokenizers, which is not installed"):
        encoder_vocabulary(config, [pretraining_texts(config)[0].train])


@pytest.mark.parametrize("pieces", ["wordpiece", "sentencepiece"])
def test_the_vocabulary_of_a_run(pieces: str, tmp_path: Path) -> None:
    """It is trained on the text with documents and the text without, and kept."""
    for name, lines in (("a.txt", LINES[:200]), ("b.txt", [*LINES[200:], "xylo xylo"])):
        (tmp_path / name).write_text("\n\n".join(lines) + "\n")
    config = PretrainConfig(
        text=(str(tmp_path / "a.txt"),),
        unpaired_text=(str(tmp_path / "b.txt"),),
        pieces=pieces,
        vocab_size=400 if pieces == "sentencepiece" else 120,
        cache_dir=str(tmp_path / "cache"),
    )
    sides, unpaired = pretraining_texts(config)
    texts = [sides.train, unpaired]
    made = encoder_vocabulary(config, texts)
    assert made.size == config.vocab_size and made.file[0] in FILES
    assert isinstance(made, WordPiece if pieces == "wordpiece" else MaskedSentencePiece)
    (kept,) = (tmp_path / "cache/vocabularies").iterdir()
    assert (kept / made.file[0]).read_bytes() == made.file[1]
    assert encoder_vocabulary(config, texts).sha256 == made.sha256
    store = encode_text(sides.train, made, folder=tmp_path)
    assert store.doubt() is None and encode_text(unpaired, made, folder=tmp_path).doubt() is None
    assert len(sides.dev.paths) == 1 and sides.train.end == sides.dev.begin == 190
