"""Vocabularies of running text: characters, bytes, SentencePiece, or Hugging Face's byte-level BPE.

Each spells every text exactly, line breaks included: `decode(encode(text)) == text` (characters: those of the training
text). The first three have the ids of `config.SPECIALS` first. The libraries are imported on first use.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, UserError, shown
from transformer.data.foreign import refuse_other
from transformer.data.given import require_string
from transformer.files import refuse_pipe, unreadable
from transformer.packages import require

_REPLACEMENT = "\ufffd".encode()  # spells a character that the vocabulary lacks


class Vocabulary:
    """A list of pieces, and the rule that splits text into them."""

    begin: int
    """Id that precedes a document."""
    end: int
    """Id that follows a document."""
    banned: tuple[int, ...]
    """Ids that are never generated."""
    file: tuple[str, bytes]
    """(name, content) of the file that a workdir holds; see `read`."""
    spelling: list[bytes]
    """The bytes that each id spells, in UTF-8; b"" for special ids."""
    slow = False
    """Whether several processes should encode a long text."""

    @property
    def size(self) -> int:
        """Number of ids, special ids included."""
        return len(self.spelling)

    @property
    def sha256(self) -> str:
        """Hex sha256 of the content of the file."""
        return hashlib.sha256(self.file[1]).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 (n,), without begin and end. Raises `UserError` for half a surrogate pair."""
        require_string("the text", text)
        try:
            content = text.encode()
        except UnicodeEncodeError:
            raise UserError("the text holds half a surrogate pair, which is not text; correct it") from None
        return self._encode(text, content)

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        """`content`: the text in UTF-8."""
        raise NotImplementedError

    def spell(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids spell together. Special ids, and numbers outside the vocabulary, spell nothing.

        Raises `UserError` only if these are no integers.
        """
        spelling, size = self.spelling, self.size
        return b"".join([spelling[i] for i in _listed(ids) if 0 <= i < size])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not UTF-8 together become U+FFFD."""
        return self.spell(ids).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A printable name of each id. Raises `UserError` for a number outside the vocabulary."""
        ids = _listed(ids)
        if outside := [i for i in ids if not 0 <= i < self.size]:
            raise UserError(f"ids hold {shown(outside[0])}: must be from 0 to {self.size - 1}")
        names = ((i, self.name(i)) for i in ids)
        return [name if name.isprintable() else f"<0x{self.spelling[i].hex().upper()}>" for i, name in names]

    def name(self, id: int) -> str:
        """The name of an id, which may have letters that can't be printed."""
        return SPECIALS[id] if id < len(SPECIALS) else self.spelling[id].decode("utf-8", "backslashreplace")

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Number of bytes that each id spells: int32 (size,)."""
        return np.array([len(text) for text in self.spelling], np.int32)

    def missing(self, text: str) -> Counter[str]:
        """The characters of a text for which there is no piece, with their numbers."""
        return Counter()


class Characters(Vocabulary):
    """The characters of a text, in the order of their code points. Other characters become UNK."""

    begin, end, banned = BOS, EOS, (PAD, BOS, UNK)

    def __init__(self, characters: Iterable[str]):
        self._characters = sorted(set(characters))
        if wrong := [c for c in self._characters if len(c) != 1 or "\ud800" <= c <= "\udfff"]:
            raise UserError(f"the vocabulary has {wrong[0]!r}, which is not a character; leave it out")
        self.file = ("characters.json", (json.dumps({"characters": "".join(self._characters)}) + "\n").encode())
        self.spelling = [b"", b"", b"", _REPLACEMENT, *(c.encode() for c in self._characters)]
        self._ids = np.full(0x110000, UNK, np.int32)  # the id of each code point
        self._ids[[ord(c) for c in self._characters]] = np.arange(len(SPECIALS), self.size, dtype=np.int32)

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        return self._ids[np.frombuffer(text.encode("utf-32-le"), "<u4")]

    def missing(self, text: str) -> Counter[str]:
        return _counted(text, set(text).difference(self._characters))


class Bytes(Vocabulary):
    """The 256 bytes of UTF-8: 260 ids with the special ones."""

    begin, end, banned = BOS, EOS, (PAD, BOS, UNK)
    file = ("bytes.json", b'{"pieces": "bytes"}\n')

    def __init__(self) -> None:
        self.spelling = [b"", b"", b"", _REPLACEMENT, *(bytes([i]) for i in range(256))]

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        return np.frombuffer(content, np.uint8).astype(np.int32) + len(SPECIALS)


class SentencePiece(Vocabulary):
    """A SentencePiece model with byte pieces. Its normaliser is replaced by one that changes nothing.

    A line break is its byte piece, so lines are encoded independently. Byte pieces also spell "▁", which stands for a
    space inside SentencePiece.
    """

    begin, end = BOS, EOS
    slow = True

    def __init__(self, model: bytes, where: str | Path = "tokenizer"):
        """`where` names the model in errors. Raises `UserError` if it is no SentencePiece model with byte pieces."""
        from transformer.data import normalizer
        from transformer.data.tokenizer import Tokenizer

        exact = normalizer.Normalizer("identity", dummy_prefix=False, remove_spaces=False)
        model = normalizer.replace(Tokenizer(model, where).model, exact)
        self._tokenizer = Tokenizer(model, where)
        self.file = ("tokenizer.model", model)
        spelt, of_byte = self._tokenizer.spelling, {}
        names = [self._tokenizer.piece(i) for i in range(len(SPECIALS), len(spelt))]
        for i, name in enumerate(names, len(SPECIALS)):
            if len(spelt[i]) == 1 and name == f"<0x{spelt[i][0]:02X}>":
                of_byte[spelt[i][0]] = i
        if len(of_byte) < 256:
            raise UserError(
                f"{where}: has no byte pieces, so it can't spell every text; train it with --byte_fallback=true"
            )
        byte_ids = set(of_byte.values())
        self.spelling = [text if i in byte_ids else text.replace(b"\xe2\x96\x81", b" ") for i, text in enumerate(spelt)]
        self.spelling[UNK] = _REPLACEMENT
        self.banned = tuple(i for i, text in enumerate(self.spelling) if i == UNK or (not text and i != EOS))
        self._spelt_by_bytes = {c: [of_byte[byte] for byte in c.encode()] for c in "\n▁"}

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        parts = re.split("([\n▁])", text)
        ids = self._tokenizer.encode(parts[::2])
        between = [self._spelt_by_bytes[c] for c in parts[1::2]]
        joined = itertools.chain.from_iterable(
            itertools.chain.from_iterable(itertools.zip_longest(ids, between, fillvalue=()))
        )
        return np.fromiter(joined, np.int32)

    def name(self, id: int) -> str:
        return self._tokenizer.piece(id)

    def missing(self, text: str) -> Counter[str]:
        """The characters that byte pieces spell, but for line breaks."""
        return _counted(text, set(text) - self._tokenizer.characters - {"\n"})


# Names of the special pieces in tokenizer.json, in the order of preference.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
_BEGINS = ("<|begin_of_text|>", "<s>")  # without one, the end also begins a document, as in GPT-2


class ByteLevel(Vocabulary):
    """Hugging Face's tokenizer.json with byte-level BPE, as GPT-2 has it. Needs the package `tokenizers`.

    Special pieces never come from text: "<|endoftext|>" in a text is spelt like any other word.
    """

    slow = True

    def __init__(self, content: bytes, where: str | Path = "tokenizer.json"):
        """`where` names the file in errors. Raises `UserError` if it is of another kind."""
        spec = json_object(content, where)
        _require_byte_level(spec, where)
        try:
            self._tokenizer = _library(where).from_str(content.decode())
        except UserError:
            raise
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"{where}: not a tokenizer.json that the package tokenizers reads ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.file = ("tokenizer.json", content)
        added = {token["id"]: token for token in spec.get("added_tokens") or ()}
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._names = {i: name for name, i in ids.items()}
        if moved := [token["content"] for i, token in added.items() if ids.get(token["content"]) != i]:
            raise UserError(f"{where}: the id of the added piece {moved[0]!r} does not follow the others; correct it")
        if max(self._names, default=0) > 2 * len(ids) + 1_000:
            raise UserError(f"{where}: has {len(ids):,} pieces, but an id of {max(self._names):,}; correct it")
        if lacking := 256 - sum(c in ids for c in BYTE_SYMBOLS):
            raise UserError(f"{where}: lacks pieces for {lacking} of the 256 bytes, so it can't spell every text")
        ends = [ids[name] for name in _ENDS if name in ids]
        if not ends:
            raise UserError(f"{where}: has no piece for the end of a text; add one of {', '.join(_ENDS)}")
        self.end = ends[0]
        self.begin = next((ids[name] for name in _BEGINS if name in ids), self.end)
        self.spelling = [self._spelt(i, added.get(i)) for i in range(max(self._names) + 1)]
        self.banned = tuple(i for i, text in enumerate(self.spelling) if not text and i != self.end)

    def _spelt(self, id: int, added: dict[str, Any] | None) -> bytes:
        name = self._names.get(id, "")
        if added is not None or id in (self.begin, self.end):
            special = added is None or added["special"] or id in (self.begin, self.end)
            return b"" if special else name.encode()
        return bytes(BYTE_SYMBOLS.get(c, 0xFF) for c in name)

    def _encode(self, text: str, content: bytes) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def name(self, id: int) -> str:
        return self._names.get(id) or f"<{range(self.size)[id]}>"


def _byte_symbols() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, from character to byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_SYMBOLS = _byte_symbols()
"""The printable character that stands for each byte in byte-level BPE -> the byte."""


def json_object(content: bytes, where: str | Path) -> dict[str, Any]:
    """The JSON object in a file called `where`. Raises `UserError` if it holds none, or text that is not Unicode."""
    try:
        spec = json.loads(content)
        json.dumps(spec, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half a surrogate pair, which is not text; correct it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(spec, dict):
        raise UserError(f"{where}: must hold a JSON object, not a {type(spec).__name__}")
    return spec


def _require_byte_level(spec: dict[str, Any], where: str | Path) -> None:
    """Raise `UserError` unless a tokenizer.json has byte-level BPE that keeps text unchanged."""
    model = spec.get("model")
    before = spec.get("pre_tokenizer")  # one step, a sequence of steps, or null
    steps = before.get("pretokenizers", [before]) if isinstance(before, dict) else []
    steps = steps if isinstance(steps, list) else []
    levels = [step for step in steps if isinstance(step, dict) and step.get("type") == "ByteLevel"]
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE" or not levels:
        raise UserError(f"{where}: not a tokenizer.json with byte-level BPE, as GPT-2 has it; give another vocabulary")
    if spec.get("normalizer"):
        raise UserError(f"{where}: its normaliser changes text; only a tokenizer without one is read")
    if any(level.get("add_prefix_space") for level in levels):
        raise UserError(f"{where}: puts a space before each text; set add_prefix_space to false")


def _library(where: str | Path) -> Any:
    require(f"{where}: reading it", "tokenizers")
    from tokenizers import Tokenizer

    return Tokenizer


def _listed(ids: Iterable[int]) -> list[int]:
    try:
        return [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        raise UserError(f"ids = {shown(ids)}: give a list of integers") from None


def _counted(text: str, characters: set[str]) -> Counter[str]:
    return Counter({c: text.count(c) for c in characters})


def _characters(content: bytes, where: str | Path) -> Characters:
    characters = json_object(content, where).get("characters")
    if not characters or not isinstance(characters, str) or sorted(set(characters)) != list(characters):
        raise UserError(f"{where}: 'characters' must be a string of different characters, sorted by code point")
    return Characters(characters)


def _bytes(content: bytes, where: str | Path) -> Bytes:
    if json_object(content, where).get("pieces") != "bytes":
        raise UserError(f"{where}: 'pieces' must be 'bytes'; give a vocabulary of one of the kinds {', '.join(FILES)}")
    return Bytes()


_KINDS = {
    "characters.json": _characters,
    "bytes.json": _bytes,
    "tokenizer.model": SentencePiece,
    "tokenizer.json": ByteLevel,
}
"""Name of a `Vocabulary.file` -> a function of its content and of a name for errors."""
FILES = tuple(_KINDS)


def read(name: str, content: bytes, where: str | Path | None = None) -> Vocabulary:
    """The vocabulary of a `Vocabulary.file`. `where` names it in errors. Raises `UserError` for a wrong content."""
    return _KINDS[name](content, where or name)


def load(path: str | Path) -> Vocabulary:
    """The vocabulary in a file of any of the four kinds. Raises `UserError` if it can't be read or is of another."""
    content = content_of(path)
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        spec = json_object(content, path)
        name = "characters.json" if "characters" in spec else "bytes.json" if "pieces" in spec else "tokenizer.json"
        return read(name, content, path)
    try:
        return SentencePiece(content, path)
    except UserError as error:
        refuse_other(path, "a SentencePiece model")
        others = [name for name, read_it in _KINDS.items() if read_it is not SentencePiece]
        raise UserError(f"{error}, or a file of another kind: {', '.join(others)}") from None


def content_of(path: str | Path) -> bytes:
    """The content of a user's file. Raises `UserError` if it can't be read."""
    try:
        refuse_pipe(path)
        return Path(path).read_bytes()
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise unreadable(path, error) from None
