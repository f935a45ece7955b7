import io
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import transformer
from transformer.config import BOS, EOS, PAD, UNK, DataConfig, UserError
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer, tokenizer
from transformer.files import seal

WORDS = ["the", "a", "small", "big", "red", "old", "house", "dog", "cat", "runs", "sees", "under", "over", "behind"]
WORDS += ["der", "die", "das", "Haus", "Hund", "läuft", "unter"]


def text(n, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(n)]


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(text(500), vocab_size=330)


def test_special_ids(trained):
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert [trained.piece(i) for i in range(5)] == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>"]
    assert trained.vocab_size == 330
    ids = trained.encode(text(50, seed=1))
    assert min(map(min, ids)) > UNK and max(map(max, ids)) < 330


@pytest.mark.parametrize(
    "line",
    [
        "the dog runs", "", " ", " the  dog ", "tab\there", "emoji 😀👩‍👩‍👧 and 漢字", "<s> </s> <pad> <unk> <0x41>",
        "a\u0085b\u2028c\rd\x0ce\x00f", "\ufeffx", "e\u0301 é ﬁ ①", "⁇ ▅",
    ],
)  # fmt: skip
def test_byte_fallback_makes_identity_lossless(trained, line):
    ids = trained.encode([line])
    assert UNK not in ids[0]
    assert trained.decode(ids) == [line]


def test_normalization_is_applied(trained):
    nfkc = Tokenizer.train(text(500), vocab_size=330, normalization="nfkc")
    assert nfkc.decode(nfkc.encode(["ﬁ ①"])) == ["fi 1"]
    assert nfkc.round_trip_rate(["ﬁ", "the dog", "①", "a"]) == 0.5
    assert trained.round_trip_rate(["ﬁ", "the dog", "①", "a"]) == 1.0
    assert trained.round_trip_rate([]) == 1.0


def test_decode_takes_anything(trained):
    assert trained.encode([]) == [] and trained.decode([]) == [] and trained.decode([[]]) == [""]
    [dog] = trained.encode(["the dog"])
    assert trained.decode([[BOS, *dog, EOS, PAD, PAD], [-1, UNK, *dog, 10**12]]) == ["the dog", "the dog"]
    assert trained.decode(np.array([[*dog, EOS, PAD]], np.int32)) == ["the dog"]
    assert trained.decode([trained.encode(["😀"])[0][:-1]]) == ["\ufffd\ufffd\ufffd"]
    rng = random.Random(0)
    random_ids = [[rng.randrange(-5, 340) for _ in range(rng.randrange(30))] for _ in range(300)]
    for line in trained.decode(random_ids):
        line.encode()  # raises for lone surrogates


LINES = ["the red dog"] * 9


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda _: Tokenizer.train(None, vocab_size=300), "lines is a NoneType: give a list of strings"),
        (lambda _: Tokenizer.train("the dog", vocab_size=300), "lines is a str: give a list of strings"),
        (lambda _: Tokenizer.train([*LINES, 3], vocab_size=300), "lines[9] is a int: give strings"),
        *(
            (
                lambda _, size=size: Tokenizer.train(LINES, vocab_size=size),
                f"vocab_size = {size!r}: must be a whole num",
            )
            for size in (0, 3, -1, None, "x", 1.5, True, 2**31, 10**30)
        ),
        *(
            (
                lambda _, rule=rule: Tokenizer.train(LINES, vocab_size=300, normalization=rule),
                f"normalization = {rule!r}: must be one of clean, identity, nfkc",
            )
            for rule in ("nfc", "", None, 3, "\ud800")
        ),
        (lambda _: Tokenizer.load(""), "a path is empty, as where a variable of the shell is not set; give a path"),
        (lambda ours: ours.cut([3]), "lines[0] is a int: give strings"),
        (lambda ours: ours.prefix(None), "text is a NoneType: give strings"),
        (lambda ours: ours.round_trip_rate(None), "lines is a NoneType: give a list of strings"),
        (lambda ours: ours.encode(["a"], "tgt"), "side = 'tgt': must be one of source, target"),
        (lambda ours: ours.encode(["a"], None), "side = None: must be one of source, target"),
        (lambda ours: ours.round_trip_rate(["a"], "Source"), "side = 'Source': must be one of source, target"),
        (lambda ours: ours.model_of(np.array(["target"] * 2)), "side = array(['target', 'target'], dtype='<U6'): must"),
        (lambda ours: ours.encode(None), "lines is a NoneType"),
        (lambda ours: ours.encode("the dog"), "lines is a str"),
        (lambda ours: ours.encode(["a", None]), "lines[1] is a NoneType"),
        (lambda ours: ours.decode(None), "ids = None: give a list of lists of integers"),
        (lambda ours: ours.decode([3]), "ids = [3]: give a list of lists of integers"),
        (lambda ours: ours.decode([["a"]]), "ids = [['a']]: give a list of lists of integers"),
        (lambda ours: ours.decode([[5.5]]), "ids = [[5.5]]: give a list of lists of integers"),
        (lambda ours: ours.piece(330), "id = 330: must be from 0 to 329"),
        (lambda ours: ours.piece(-1), "id = -1: must be from 0 to 329"),
        (lambda ours: ours.piece("a"), "id = 'a': must be from 0 to 329"),
        (lambda ours: ours.score(330), "id = 330: must be from 0 to 329"),
        (lambda _: Tokenizer("a"), "tokenizer: give the bytes of a SentencePiece model"),
        (lambda _: Tokenizer.load(None), "the tokenizer is a NoneType: give the path"),
        (lambda _: Tokenizer.load("a\0b"), "a\0b: cannot be read (embedded null byte)"),
    ],
)
def test_wrong_arguments_are_named(trained, call, told: str):
    with pytest.raises(UserError) as error:
        call(trained)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_a_lone_surrogate_is_read_as_a_question_mark(trained):
    assert trained.encode(["a \ud800"]) == trained.encode(["a ?"])
    made = Tokenizer.train(["the \ud800 dog"] * 9, vocab_size=275)
    assert made.sha256 == Tokenizer.train(["the ? dog"] * 9, vocab_size=275).sha256


def test_vocabulary_size_that_the_text_does_not_allow():
    for wrong, nearest in ((8, "smallest possible is"), (100_000, "largest possible is")):
        with pytest.raises(UserError, match=rf"^data\.vocab_size = {wrong}: .*{nearest} \d+$") as error:
            Tokenizer.train(text(100), vocab_size=wrong)
        size = int(str(error.value).split()[-1])
        assert Tokenizer.train(text(100), vocab_size=size).vocab_size == size
        with pytest.raises(UserError):
            Tokenizer.train(text(100), vocab_size=size + (1 if wrong > size else -1))
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text"):
            Tokenizer.train(nothing, vocab_size=300)


def test_long_lines_count_and_errors_while_reading_pass_through():
    line = "a " * 5_000 + "ß" * 20 + " b" * 5_000 + "c" * 100_000
    made = Tokenizer.train([line], vocab_size=268)
    assert len(made.encode(["ß"])[0]) <= 2  # one piece, not two byte pieces and a space

    def broken():
        yield "a b c"
        raise UserError("file:2: wrong")

    with pytest.raises(UserError, match=r"^file:2: wrong$"):
        Tokenizer.train(broken(), vocab_size=300)


def test_same_text_same_bytes_wherever_it_lies(tmp_path):
    program = (
        "import sys; from transformer.config import DataConfig; from transformer.data.text import Parallel\n"
        "from transformer.data.tokenizer import tokenizer\n"
        "config = DataConfig(vocab_size=330, cache_dir='cache', tokenizer_sentences=400)\n"
        "made = tokenizer(config, (Parallel(*sys.argv[1:]),)); print(made.sha256)"
    )
    printed = []
    for place, name in (("one", "1"), ("another/deeper", "4")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / f"{name}.en").write_text("\n".join(text(500)) + "\n", encoding="utf-8")
        (folder / f"{name}.de").write_text("\n".join(text(500, seed=1)) + "\n", encoding="utf-8")
        env = os.environ | {"PYTHONPATH": str(Path(transformer.__file__).parents[1]), "PYTHONHASHSEED": name}
        command = [sys.executable, "-c", program, f"{name}.en", str(folder / f"{name}.de")]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
        printed.append(done.stdout.strip())
        assert done.stderr == ""  # SentencePiece logs nothing
        [kept] = (folder / "cache/tokenizers").glob("*/tokenizer.model")
        assert Tokenizer.load(kept).sha256 == printed[-1]
    assert printed[0] == printed[1]


def test_cache_is_keyed_by_content(tmp_path):
    for name, seed in (("a.en", 0), ("a.de", 1), ("b.de", 2)):
        (tmp_path / name).write_text("\n".join(text(300, seed)), encoding="utf-8")
    config = DataConfig(vocab_size=320, cache_dir=str(tmp_path / "cache"))
    a = (Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de")),)
    made = tokenizer(config, a)
    [kept] = (tmp_path / "cache/tokenizers").iterdir()
    marked = Tokenizer.train(text(300, seed=9), vocab_size=310).model
    (kept / "manifest.json").unlink()
    (kept / "tokenizer.model").write_bytes(marked)
    seal(kept)
    assert tokenizer(config, a).model == marked  # read from the cache, not trained again
    assert tokenizer(config, (Parallel(a[0].source, str(tmp_path / "b.de")),)).model not in (marked, made.model)
    for other in ({"vocab_size": 321}, {"normalization": "nfkc"}, {"tokenizer_sentences": 100}):
        assert tokenizer(DataConfig(**{"vocab_size": 320, "cache_dir": config.cache_dir} | other), a).model != marked


@pytest.mark.parametrize("harm", ["a bit", "cut", "empty", "zeros"])
def test_a_damaged_one_is_trained_again(tmp_path, caplog, harm):
    (tmp_path / "a.tsv").write_text("".join(f"{line}\t{line}\n" for line in text(300)), encoding="utf-8")
    config, corpora = DataConfig(vocab_size=320, cache_dir=str(tmp_path)), (Parallel(str(tmp_path / "a.tsv")),)
    made = tokenizer(config, corpora)
    [kept] = (tmp_path / "tokenizers").glob("*/tokenizer.model")
    piece = next(made.piece(i).encode() for i in range(260, 320) if made.piece(i).isascii() and len(made.piece(i)) > 1)
    kept.write_bytes(
        {
            "a bit": made.model.replace(piece, bytes([piece[0] ^ 1]) + piece[1:], 1),  # still valid, but another model
            "cut": made.model[:-100],
            "empty": b"",
            "zeros": bytes(len(made.model)),
        }[harm]
    )
    with caplog.at_level(logging.WARNING, "transformer"):
        assert tokenizer(config, corpora).model == made.model
    assert f"{kept} is not as it was written: making the tokenizer again" in caplog.text
    assert [path.read_bytes() for path in (tmp_path / "tokenizers").glob("*/*.model")] == [made.model]


def test_tokenizer_sentences_are_spread_over_the_whole_text(tmp_path, monkeypatch):
    (tmp_path / "a.tsv").write_text("".join(f"s{i}\tt{i}\n" for i in range(10)))
    (tmp_path / "b.tsv").write_text("".join(f"s{i}\tt{i}\n" for i in range(10, 15)))
    seen = []

    def train(lines, **kwargs):
        seen.extend(lines)
        return Tokenizer(sample)

    sample = Tokenizer.train(text(100), vocab_size=300).model
    monkeypatch.setattr(Tokenizer, "train", train)
    corpora = tuple(Parallel(str(tmp_path / name)) for name in ("a.tsv", "b.tsv"))
    tokenizer(DataConfig(tokenizer_sentences=5, cache_dir=str(tmp_path)), corpora)
    assert seen == ["s2", "t2", "s5", "t5", "s8", "t8", "s11", "t11", "s14", "t14"]


def foreign(**ids):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text(500)), model_writer=model, model_type="bpe", vocab_size=100, minloglevel=2, **ids
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("ids", "missing"),
    [
        ({}, 1),  # SentencePiece's default: unk 0, bos 1, eos 2, no pad
        ({"unk_id": 1, "pad_id": 0, "bos_id": -1, "eos_id": -1}, 2),
        ({"unk_id": 3, "pad_id": 2, "bos_id": 0, "eos_id": 1}, 0),
        ({"unk_id": 0, "pad_id": -1, "bos_id": -1, "eos_id": 1, "user_defined_symbols": "<de>"}, 2),
    ],
)
def test_foreign_models_are_brought_to_our_ids(ids, missing):
    model = foreign(**ids)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model), Tokenizer(model)
    assert ours.model == model
    assert ours.vocab_size == 100 + missing
    assert len({ours.piece(i) for i in range(ours.vocab_size)}) == ours.vocab_size
    lines = [*text(50, seed=3), "漢"]
    for line, own in zip(lines, ours.encode(lines), strict=True):
        assert [ours.piece(i) for i in own] == [theirs.id_to_piece(i) for i in theirs.encode(line)]
    assert ours.decode(ours.encode(lines))[:-1] == lines[:-1]
    assert ours.encode(["漢"])[0][-1] == UNK
    assert ours.decode([range(-2, 130)])  # every id, and more


def test_a_ready_model_is_used_as_it_is(tmp_path):
    path = tmp_path / "ready.model"
    path.write_bytes(foreign())
    made = tokenizer(DataConfig(tokenizer=str(path), vocab_size=4_000), ())
    assert made.vocab_size == 101 and made.model == path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"{}", b"hello world\n", bytes(100), "größe".encode() * 50])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "wrong.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"wrong\.model: not a SentencePiece model"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match=r"gone\.model: cannot be read"):
        Tokenizer.load(tmp_path / "gone.model")
