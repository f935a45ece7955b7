"""The normaliser inside a SentencePiece model: read, replaced, compiled from a table of replacements.

A model is one protocol buffer, `ModelProto`; its field 3, `NormalizerSpec`, holds the normaliser. SentencePiece's own
reader needs a further package, so the few bytes are read here.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sentencepiece

_SPEC = 3  # number of the normaliser's field in a model


@dataclass(frozen=True)
class Normalizer:
    """What a model does to text before it cuts it. The fields are those of SentencePiece, by their numbers there."""

    name: str = ""
    charsmap: bytes = b""
    """The compiled replacements; none = text stays as it is."""
    dummy_prefix: bool = True
    """A space is put before each text."""
    remove_spaces: bool = True
    """Spaces in a row become one, and those at the ends go."""
    escape_spaces: bool = True
    """A space is written "▁"."""


def read(model: bytes) -> Normalizer:
    """The normaliser of a model."""
    normalizer = Normalizer()
    names = {i: f.name for i, f in enumerate(dataclasses.fields(Normalizer), 1)}
    for number, content, _ in _fields(model):
        if number == _SPEC:
            values = {names[n]: value for n, value, _ in _fields(content) if n in names}
            text = {"name": values["name"].decode()} if "name" in values else {}
            flags = {name: bool(value) for name, value in values.items() if isinstance(value, int)}
            normalizer = dataclasses.replace(normalizer, **values | text | flags)
    return normalizer


def replace(model: bytes, new: Normalizer) -> bytes:
    """The model with another normaliser."""
    spec = _bytes(1, new.name.encode()) + _bytes(2, new.charsmap)
    for number, flag in enumerate((new.dummy_prefix, new.remove_spaces, new.escape_spaces), 3):
        spec += _varint(number << 3) + _varint(int(flag))
    kept, new_spec = [], _bytes(_SPEC, spec)
    for number, _, raw in _fields(model):
        kept.append(raw if number != _SPEC else new_spec)
        new_spec = b"" if number == _SPEC else new_spec
    return b"".join(kept)


def compiled(rows: Iterable[tuple[str, str]]) -> bytes:
    """Replacements as SentencePiece keeps them; the longest that fits comes first."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".tsv") as file:
        for before, after in rows:
            sides = (" ".join(f"{ord(c):X}" for c in side) for side in (before, after))
            file.write("\t".join(sides) + "\n")
        file.flush()
        # SentencePiece compiles a table as it trains: here on one letter.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]),
            model_writer=model,
            model_type="char",
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=file.name,
            minloglevel=2,
        )
    return read(model.getvalue()).charsmap


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Number, value and all bytes of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        start = at
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
        elif kind == 2:
            size, at = _number(message, at)
            value, at = message[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = message[at : at + size], at + size
        else:
            raise ValueError("not a protocol buffer")
        yield key >> 3, value, message[start:at]


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, seven bits in each, and where it ends."""
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not message[at - 1] & 0x80:
            return value, at


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
