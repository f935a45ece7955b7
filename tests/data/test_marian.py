"""The tokenizer of a Marian: two SentencePiece models and one vocabulary, whose ids are not ours."""

import json

import numpy as np
import pytest
from opus import CODES, ODD, SOURCE, TARGET, spm, vocabulary

from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, UserError
from transformer.data import marian
from transformer.data.marian import MarianTokenizer
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer
from transformer.data.tokens import tokenize

MODELS = {"source": spm(SOURCE), "target": spm(TARGET)}
IDS = vocabulary(MODELS)
PIECES = sorted(IDS, key=IDS.__getitem__)
SPECIAL = {"pad": len(IDS) - 1, "eos": 0, "unk": 1, "start": len(IDS) - 1}


def made(**special) -> MarianTokenizer:
    return MarianTokenizer(*MODELS.values(), PIECES, SPECIAL | special)


def test_ids_are_ours_and_lead_to_theirs() -> None:
    ours = made()
    assert ours.vocab_size == len(PIECES) + 1  # bos
    assert [ours.piece(i) for i in range(4)] == list(SPECIALS)
    assert ours.their_ids[:4] == [SPECIAL["pad"], SPECIAL["pad"], 0, 1]
    assert [PIECES[i] for i in ours.their_ids[4:]] == [ours.piece(i) for i in range(4, ours.vocab_size)]
    assert sorted(ours.their_ids[:1] + ours.their_ids[2:]) == list(range(len(PIECES)))
    assert ours.adds_bos
    with_bos = made(start=IDS["▁th"])
    assert (with_bos.vocab_size, with_bos.adds_bos) == (len(PIECES), False)
    assert with_bos.their_ids[BOS] == IDS["▁th"]
    assert with_bos.encode(["th"]) == [[UNK]]  # a special piece never comes from text


def test_each_side_has_its_model() -> None:
    ours = made()
    for side, lines in (("source", SOURCE), ("target", TARGET)):
        theirs = Tokenizer(MODELS[side])
        for line in lines:
            names = [ours.piece(i) for i in ours.encode([line], side)[0]]
            cut = [theirs.piece(i) for i in theirs.encode([line])[0]]
            assert names == [name if name in IDS else "<unk>" for name in cut]
    assert ours.encode([SOURCE[0]], "source") != ours.encode([SOURCE[0]], "target")
    assert UNK in ours.encode([SOURCE[0]])[0]  # the vocabulary lacks "rd"
    assert [ours.model_of(side) for side in MODELS] == list(MODELS.values())


def test_the_code_of_a_language_is_a_piece_at_the_beginning_alone() -> None:
    ours = made()
    (known,), (unknown,) = ours.encode([">>de<<"]), ours.encode([">>xx<<"])
    assert [ours.piece(i) for i in known] == [">>de<<"]
    assert unknown == [UNK]
    assert ours.encode([">>de<< the"])[0] == known + ours.encode([" the"])[0]
    assert known[0] not in ours.encode(["the >>de<<"])[0]
    assert ours.unknown(["the", ">>xx<< the"], 7) == "line 8: 1 piece is unknown to the model: '>>xx<<'"
    assert ours.unknown(["the", f"{CODES[0]} the"], 1) is None


def test_special_pieces_never_come_from_text() -> None:
    ours = made()
    for line in [*ODD, "</s>", "<pad> <unk>", "<s>"]:
        for side in MODELS:
            assert not {PAD, BOS, EOS} & set(ours.encode([line], side)[0])


def test_decoding_gives_the_text_back() -> None:
    ours = made()
    line = "Ein Hund läuft durch die alte Stadt"
    ids = ours.encode([line], "target")[0]
    assert ours.decode([[BOS, *ids, EOS, PAD, 10_000], []]) == [line, ""]
    assert ours.decode([np.array(ours.encode([f">>de<< {line}"], "target")[0])]) == [f">>de<< {line}"]
    assert b"".join(ours.spelling[i] for i in ids).decode() == "▁" + line.replace(" ", "▁")
    assert ours.spelling[ours.encode([">>de<<"])[0][0]] == b""
    (cut,) = ours.cut([line])
    assert (cut.pieces, cut.spelt) == (ids, [ours.spelling[i] for i in ids])


def test_byte_pieces_spell_what_the_model_lacks() -> None:
    models = [spm(lines, model_type="bpe", byte_fallback=True, vocab_size=340) for lines in (SOURCE, TARGET)]
    ids = vocabulary(dict(zip(MODELS, models, strict=True)))
    special = {"pad": len(ids) - 1, "eos": 0, "unk": 1, "start": len(ids) - 1}
    ours = MarianTokenizer(*models, sorted(ids, key=ids.__getitem__), special)
    (pieces,) = ours.encode(["漢 a"], "target")
    assert UNK not in pieces
    assert b"".join(ours.spelling[i] for i in pieces).decode() == "▁漢▁a"
    assert ours.decode([pieces]) == ["漢 a"]


def test_the_file_gives_the_same_tokenizer(tmp_path) -> None:
    ours = made()
    name, content = ours.file
    again = marian.read(name, content)
    assert (name, again.file, again.sha256) == ("marian.json", ours.file, ours.sha256)
    assert again.encode(ODD) == ours.encode(ODD)
    (tmp_path / "x").write_bytes(content)
    assert marian.load(tmp_path / "x").file == ours.file
    (tmp_path / "y").write_bytes(MODELS["source"])
    assert marian.load(tmp_path / "y").file == ("tokenizer.model", MODELS["source"])


def test_processes_tokenise_as_one_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("transformer.data.tokens._PARALLEL_FROM", 1)
    monkeypatch.setattr("transformer.data.tokens._CHUNK", 1)
    for name, lines in (("en", SOURCE), ("de", TARGET)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines * 3))
    parallel = Parallel(str(tmp_path / "en"), str(tmp_path / "de"))
    stores = [tokenize(parallel, made(), folder=tmp_path / str(workers), workers=workers) for workers in (1, 2)]
    assert stores[0].sha256() == stores[1].sha256()
    assert list(stores[0].source(0)) == made().encode([SOURCE[0]], "source")[0]
    assert list(stores[0].target(0)) == made().encode([TARGET[0]], "target")[0]


CONTENT = json.loads(made().file[1])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"pieces": 3}, "w: 'pieces' must be a list of strings"),
        ({"pieces": [*PIECES[:-1], PIECES[5]]}, f"w: the piece {PIECES[5]!r} has two ids"),
        ({"special": {"pad": 0}}, "w: 'special' must hold the ids of pad, eos, unk and start"),
        ({"special": SPECIAL | {"unk": 0}}, "w: the special pieces share an id (pad 96, eos 0, unk 0)"),
        ({"special": SPECIAL | {"eos": 99}}, "w: the id of eos is 99: must be from 0 to 96"),
        ({"source": "?"}, "w: 'source' must hold a SentencePiece model in base64"),
        ({"target": None}, "w: 'target' must hold a SentencePiece model in base64"),
        ({"target": "aaaa"}, "w (target): not a SentencePiece model"),
    ],
)
def test_a_wrong_file_is_named(change: dict, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        marian.read("marian.json", json.dumps(CONTENT | change).encode(), "w")
    assert str(error.value).startswith(complaint)


@pytest.mark.parametrize("content", ['{"version": "1.0", "model": {}}', "{}", '{"pieces": "bytes"}'])
def test_another_tokenizers_file_is_named(tmp_path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        UserError, match=r"tokenizer\.json: not a tokenizer for translation; give a SentencePiece model"
    ):
        marian.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("call", [lambda t: t.encode(["x"], "both"), lambda t: t.encode([3]), lambda t: t.piece(98)])
def test_wrong_arguments_are_named(call) -> None:
    with pytest.raises(UserError):
        call(made())
