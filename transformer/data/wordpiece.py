"""Vocabularies of an encoder alone: WordPiece as BERT has it, or SentencePiece with a piece for the mask.

Each line of a text is split by itself. Text is normalised, so not every text can be spelt again. The libraries are
imported on first use.
"""

from __future__ import annotations

import codecs
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import BOS, EOS, PAD, UNK, UserError
from transformer.data.foreign import refuse_other
from transformer.data.vocabularies import Vocabulary, content_of, json_object
from transformer.packages import require

log = logging.getLogger("transformer")

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first pieces of a new WordPiece vocabulary."""
CONTINUES = "##"  # begins the pieces of a new vocabulary that go on with a word


class EncoderVocabulary(Vocabulary):
    """A vocabulary with the special pieces of an encoder. `encode` gives the ids of all lines of a text, with the id
    `sep` for each line break."""

    pad: int
    """Id of padding."""
    cls: int
    """Id that begins a row: its state stands for the whole row."""
    sep: int
    """Id that follows each text of a row."""
    mask: int
    """Id in the place of a piece that is to be predicted."""
    unk: int
    """Id of text for which there is no piece."""
    starts: np.ndarray
    """Whether a word begins with each piece: bool (size,)."""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line."""
        raise NotImplementedError

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        first, *more = self.encode_lines(text.split("\n"))
        return np.fromiter(itertools.chain(first, *([self.sep, *ids] for ids in more)), np.int32)

    @property
    def special(self) -> frozenset[int]:
        """The ids that stand for no text."""
        return frozenset((self.pad, self.cls, self.sep, self.mask, self.unk))

    @property
    def banned(self) -> tuple[int, ...]:
        return tuple(sorted(self.special))

    @property
    def begin(self) -> int:
        return self.cls

    @property
    def end(self) -> int:
        return self.sep

    def missing(self, text: str) -> Counter[str]:
        characters = sorted(set(text) - self._known.keys())
        for c, ids in zip(characters, self.encode_lines(characters), strict=True):
            self._known[c] = self._stand_ins.isdisjoint(ids)
        return Counter({c: text.count(c) for c in set(text) if not self._known[c]})

    @cached_property
    def _known(self) -> dict[str, bool]:
        """Whether there is a piece for a character."""
        return {"\n": True}

    @cached_property
    def _stand_ins(self) -> frozenset[int]:
        """The ids in the place of characters without a piece."""
        return frozenset([self.unk])


class WordPiece(EncoderVocabulary):
    """Hugging Face's tokenizer.json with WordPiece. Needs the package `tokenizers`.

    Special pieces never come from text: "[MASK]" in a text is split like any other text. What the file says of cutting
    and padding has no effect.
    """

    def __init__(self, content: bytes, where: str | Path = "tokenizer.json"):
        """`where` names the file in errors. Raises `UserError` if it is of another kind."""
        spec = json_object(content, where)
        model = spec.get("model")
        if not isinstance(model, dict) or model.get("type") != "WordPiece":
            raise UserError(f"{where}: not a tokenizer.json with WordPiece, as BERT has it; give another vocabulary")
        require(f"{where}: reading it", "tokenizers")
        self._tokenizer = _bare_tokenizer(spec, where)
        self.file = ("tokenizer.json", content)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if lacking := [name for name in SPECIAL_PIECES if name not in ids]:
            raise UserError(f"{where}: lacks the piece {lacking[0]}; give the vocabulary of a BERT")
        self.pad, self.unk, self.cls, self.sep, self.mask = (ids[name] for name in SPECIAL_PIECES)
        if len(self.special) < len(SPECIAL_PIECES):
            raise UserError(f"{where}: two of the pieces {', '.join(SPECIAL_PIECES)} have the same id; correct it")
        if model["unk_token"] != "[UNK]" or "[UNK]" not in model["vocab"]:
            raise UserError(f"{where}: its model has no piece [UNK] for unknown text; give the vocabulary of a BERT")
        self._names = {i: name for name, i in ids.items()}
        if max(self._names) > 2 * len(ids) + 1_000:
            raise UserError(f"{where}: has {len(ids):,} pieces, but an id of {max(self._names):,}; correct it")
        found = self._tokenizer.encode_batch_fast(list(SPECIAL_PIECES), add_special_tokens=False)
        # So it is if words are split at spaces alone.
        self._finds_special = any(self.special.intersection(one.ids) - {self.unk} for one in found)
        self._continues = model.get("continuing_subword_prefix") or None
        names = [self.name(i) for i in range(max(self._names) + 1)]
        self.starts = np.array([self._continues is None or not name.startswith(self._continues) for name in names])
        self.spelling = [self._spelt(i, name) for i, name in enumerate(names)]

    def _spelt(self, id: int, name: str) -> bytes:
        if id in self.special or id not in self._names:
            return b"\n" if id == self.sep else b""
        return f" {name}".encode() if self.starts[id] else name.removeprefix(self._continues or "").encode()

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        found = [one.ids for one in self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)]
        if not self._finds_special:
            return found
        return [[self.unk if i in self.special else i for i in ids] for ids in found]

    def name(self, id: int) -> str:
        return self._names.get(id) or f"<{id}>"


def _bare_tokenizer(spec: dict[str, Any], where: str | Path) -> Any:
    """The library's tokenizer for a tokenizer.json with WordPiece, without the rules that cut, pad and frame texts.

    Special pieces are never read from text, whatever the file says of them. Raises `UserError` for what the library
    can't read, or can't use.
    """
    from tokenizers import Tokenizer

    added = [
        token | {"special": True} if isinstance(token, dict) and token.get("content") in SPECIAL_PIECES else token
        for token in spec.get("added_tokens") or ()
    ]
    bare = spec | dict.fromkeys(("truncation", "padding", "post_processor")) | {"added_tokens": added}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(bare))
        tokenizer.encode_special_tokens = True
        tokenizer.encode_batch_fast(["A text, to try it: naïve 日本."], add_special_tokens=False)
    except BaseException as error:  # the library raises no narrower class, and its panics are no `Exception`
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: not a tokenizer.json that the package tokenizers reads ({error})") from None
    return tokenizer


class MaskedSentencePiece(EncoderVocabulary):
    """A SentencePiece model, and one more piece, the last one, for the mask, as in XLM-R.

    `<s>` begins a row, and `</s>` follows each text of a row.
    """

    pad, cls, sep, unk = PAD, BOS, EOS, UNK

    def __init__(self, model: bytes, where: str | Path = "tokenizer"):
        """`where` names the model in errors. Raises `UserError` if it is not a SentencePiece model."""
        from transformer.data.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(model, where)
        self.file = ("tokenizer.model", model)
        self.mask = self._tokenizer.vocab_size
        names = [self.name(i) for i in range(self.mask + 1)]
        self.starts = np.array([name.startswith("▁") for name in names])
        self.spelling = [text.replace("▁".encode(), b" ") for text in (*self._tokenizer.spelling, b"")]
        self.spelling[self.unk], self.spelling[self.sep] = b"", b"\n"

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode(lines)

    def name(self, id: int) -> str:
        return "<mask>" if id == self.mask else self._tokenizer.piece(id)

    @cached_property
    def _stand_ins(self) -> frozenset[int]:
        byte = re.compile("<0x[0-9A-F]{2}>")
        return frozenset([self.unk, *(i for i in range(self.size) if byte.fullmatch(self.name(i)))])


def tokenizer_json(
    pieces: Sequence[str], *, lower_case: bool, strip_accents: bool | None = None, chinese: bool = True
) -> bytes:
    """The tokenizer.json of a WordPiece vocabulary with BERT's rules; id i is `pieces[i]`.

    `strip_accents`: whether accents are removed; None = as `lower_case`. `chinese`: whether each Chinese character is a
    word. The same pieces give the same bytes under every version of the library.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **added} for name, i in ids.items() if name in SPECIAL_PIECES],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": chinese,
            "strip_accents": strip_accents,
            "lowercase": lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _framed(ids) if {"[CLS]", "[SEP]"} <= ids.keys() else None,
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    return (json.dumps(spec, ensure_ascii=False, indent=1) + "\n").encode()


def _framed(ids: dict[str, int]) -> dict[str, Any]:
    """The rule of other programs that frames texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""

    def special(name: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    first = [special("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]", 0)]
    names = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}, special("[SEP]", 1)],
        "special_tokens": names,
    }


_KINDS = {"tokenizer.json": WordPiece, "tokenizer.model": MaskedSentencePiece}
FILES = tuple(_KINDS)
"""The names that `Vocabulary.file` may have."""


def read(name: str, content: bytes, where: str | Path | None = None) -> EncoderVocabulary:
    """The vocabulary of a `Vocabulary.file`. `where` names it in errors. Raises `UserError` for a wrong content."""
    return _KINDS[name](content, where or name)


def load(path: str | Path) -> EncoderVocabulary:
    """The vocabulary in a vocab.txt, a tokenizer.json with WordPiece, or a SentencePiece model.

    A vocab.txt holds one piece a line. The tokenizer_config.json beside it says how text is normalised. Without one, it
    is lower-cased unless a piece has an upper-case letter. Raises `UserError` if the file can't be read or is of
    another kind.
    """
    content = content_of(path)
    text = content.removeprefix(codecs.BOM_UTF8)
    if text.lstrip()[:1] == b"{":
        return WordPiece(content, path)
    pieces = _listed(text)
    if "[MASK]" in pieces:
        if repeated := [piece for piece, count in Counter(pieces).items() if count > 1]:
            raise UserError(f"{path}: holds the piece {repeated[0]!r} twice; correct it")
        return WordPiece(tokenizer_json(pieces, **_normalization(Path(path), pieces)), path)
    try:
        return MaskedSentencePiece(content, path)
    except UserError:
        refuse_other(path, "a vocabulary of an encoder")
        raise UserError(
            f"{path}: not a vocabulary of an encoder; give a vocab.txt or tokenizer.json with WordPiece and [MASK], or "
            "a SentencePiece model"
        ) from None


def _listed(content: bytes) -> list[str]:
    """The lines of a vocab.txt, without blank ones at its end; none if it is not text."""
    try:
        lines = [line.removesuffix("\r") for line in content.decode().split("\n")]
    except UnicodeDecodeError:
        return []
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _normalization(path: Path, pieces: Sequence[str]) -> dict[str, Any]:
    """The arguments of `tokenizer_json` for a vocab.txt: what the tokenizer_config.json beside it says, or a guess."""
    config = path.with_name("tokenizer_config.json")
    if not config.exists():
        named = [piece for piece in pieces if piece not in SPECIAL_PIECES and piece[:7] != "[unused"]
        lower = not any(piece.lower() != piece for piece in named)
        how = "is lower-cased, as all pieces are" if lower else "keeps its case, as some pieces have upper-case letters"
        log.info("%s: there is no tokenizer_config.json: text %s", path, how)
        return {"lower_case": lower}
    options = json_object(content_of(config), config)
    for name, ours in (("word_tokenizer_type", "basic"), ("subword_tokenizer_type", "wordpiece")):
        if (kind := options.get(name, ours)) != ours:
            raise UserError(
                f"{config}: {name} = {kind!r}: words are split as BERT does it ({ours!r}) alone; to import the model "
                f"without a vocabulary, take {path.name} away"
            )
    names = {"lower_case": "do_lower_case", "strip_accents": "strip_accents", "chinese": "tokenize_chinese_chars"}
    given = {ours: options.get(name, ours != "strip_accents" or None) for ours, name in names.items()}
    for ours, value in given.items():
        if not isinstance(value, bool) and (ours, value) != ("strip_accents", None):
            raise UserError(f"{config}: {names[ours]} = {value!r}: must be true or false")
    return given
