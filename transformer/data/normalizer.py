"""Read and replace the normaliser inside a SentencePiece model, and compile one from a table of replacements.

A model is a protocol buffer, `ModelProto`. Its field 3, `NormalizerSpec`, is the normaliser. SentencePiece's own reader
needs another package (protobuf), so these few bytes are parsed here.
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
    """What a model does to text before it cuts it into pieces: SentencePiece's fields, ordered by number."""

    name: str = ""
    charsmap: bytes = b""
    """The compiled replacements; b"" = none."""
    dummy_prefix: bool = True
    """Whether to put a space before each text."""
    remove_spaces: bool = True
    """Whether to replace each run of spaces by one space and to strip spaces at both ends."""
    escape_spaces: bool = True
    """Whether to write a space as "▁"."""


def read(model: bytes) -> Normalizer:
    """The normaliser of a model file, given as bytes."""
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
    """The bytes of the model with `new` as its normaliser."""
    spec = _bytes(1, new.name.encode()) + _bytes(2, new.charsmap)
    for number, flag in enumerate((new.dummy_prefix, new.remove_spaces, new.escape_spaces), 3):
        spec += _varint(number << 3) + _varint(int(flag))
    kept, new_spec = [], _bytes(_SPEC, spec)
    for number, _, raw in _fields(model):
        kept.append(raw if number != _SPEC else new_spec)
        new_spec = b"" if number == _SPEC else new_spec
    return b"".join(kept)


def compiled(rows: Iterable[tuple[str, str]]) -> bytes:
    """Compile (text, replacement) rows to SentencePiece's format. The longest match wins."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".tsv") as file:
        for before, after in rows:
            sides = (" ".join(f"{ord(c):X}" for c in side) for side in (before, after))
            file.write("\t".join(sides) + "\n")
        file.flush()
        # SentencePiece compiles a table only while it trains, so train on one letter.
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
    """Yield the number, the value and the raw bytes of each field of a protocol buffer."""
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
    """Decode the varint (seven bits per byte) at offset `at`. Returns the number and the offset behind it."""
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
