"""The tokenizer of a Marian model, as Opus-MT has it: a SentencePiece model for each side, and a vocabulary of both.

The ids in the vocabulary are neither those of the SentencePiece models nor ours. So each piece has two ids: theirs, by
which the model came and can be exported again, and ours, with PAD, BOS, EOS, UNK = 0, 1, 2, 3 first and the others in
their order.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import sentencepiece

from transformer.config import SPECIALS, UNK, UserError, shown
from transformer.data.given import strings
from transformer.data.tokenizer import Cut, Side, Tokenizer, id_lists, require_one_of
from transformer.data.vocabularies import content_of, json_object

FILE = "marian.json"
_SPACE = "\u2581"


class MarianTokenizer(Tokenizer):
    """Two SentencePiece models and a list of pieces. Gives the ids of the class of this name in transformers.

    Each model normalises text by its own rule. A piece that the list lacks is UNK. A text may begin with the code of a
    language in the form ">>xx<<", which is one piece. Special pieces never come from text.
    """

    cleans = False

    def __init__(
        self,
        source: bytes,
        target: bytes,
        pieces: Sequence[str],
        special: Mapping[str, int],
        where: str | Path = "the tokenizer",
    ):
        """`pieces`: those of the vocabulary, by their ids. `special`: their ids of "pad", "eos", "unk", and of "start",
        the piece that the decoder begins with. `where` names the vocabulary in errors.

        If the decoder begins with one of the other three, then our BOS is a piece of its own that the vocabulary lacks.
        """
        _check(pieces, special, where)
        self._models = {"source": source, "target": target}
        self._processors = {side: _processor(model, where, side) for side, model in self._models.items()}
        self._processor = self._processors["target"]
        self.pieces, self.special = tuple(pieces), dict(special)
        first = [special[name] for name in ("pad", "start", "eos", "unk")]
        self.their_ids: list[int] = [*first, *(i for i in range(len(pieces)) if i not in first)]
        """For each of our ids, theirs. That of BOS occurs twice if BOS is not in their vocabulary."""
        self._ids = {pieces[i]: ours for ours, i in enumerate(self.their_ids) if ours >= len(SPECIALS)}
        content = {
            "special": self.special,
            "pieces": self.pieces,
            **{side: base64.b64encode(model).decode() for side, model in self._models.items()},
        }
        self.model = (json.dumps(content, ensure_ascii=False) + "\n").encode()

    @property
    def file(self) -> tuple[str, bytes]:
        return FILE, self.model

    @property
    def sha256(self) -> str:
        """Hex sha256 of the file."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.their_ids)

    @property
    def adds_bos(self) -> bool:
        """Whether their vocabulary lacks BOS."""
        return len(self.their_ids) > len(self.pieces)

    def model_of(self, side: Side) -> bytes:
        require_one_of("side", side, get_args(Side))
        return self._models[side]

    def piece(self, id: int) -> str:
        if not isinstance(id, (int, np.integer)) or not 0 <= id < self.vocab_size:
            raise UserError(f"id = {shown(id)}: must be from 0 to {self.vocab_size - 1}")
        return self._names[id]

    def score(self, id: int) -> float:
        """Raise `UserError`: the vocabulary has no scores."""
        raise UserError("the tokenizer is of two models, without an order of merges, so there is no BPE dropout")

    @cached_property
    def _names(self) -> list[str]:
        return [*SPECIALS, *(self.pieces[i] for i in self.their_ids[len(SPECIALS) :])]

    # ---- From text ---------------------------------------------------------------------------------------------------

    def encode(self, lines: Sequence[str], side: Side = "source") -> list[list[int]]:
        require_one_of("side", side, get_args(Side))
        return [[self._ids.get(name, UNK) for name in names] for names in self._split(strings("lines", lines), side)]

    def _split(self, lines: Sequence[str], side: Side) -> list[list[str]]:
        """The names of the pieces of each line, also of pieces that the vocabulary lacks."""
        cut = [_language(line) for line in lines]
        parts = self._processors[side].encode([text for _, text in cut], out_type=str, num_threads=1)
        return [[code] * bool(code) + names for (code, _), names in zip(cut, parts, strict=True)]

    def cut(self, lines: Sequence[str]) -> list[Cut]:
        found = []
        for names in self._split(list(lines), "target"):
            ids = [self._ids.get(name, UNK) for name in names]
            found.append(Cut(ids, [self.spelling[i] for i in ids]))
        return found

    def unknown(self, lines: Sequence[str], first_line: int) -> str | None:
        """A warning that counts and lists the pieces of sources that the vocabulary lacks, or None."""
        counts: Counter[str] = Counter()
        numbers = []
        for number, names in enumerate(self._split(strings("lines", lines), "source"), first_line):
            lacking = [name for name in names if name not in self._ids and name != _SPACE]
            counts.update(lacking)
            numbers += [number] if lacking else []
        if not counts:
            return None
        first_of = "" if len(numbers) == 1 else f" the first of {len(numbers):,} such lines;"
        pieces = "1 piece is" if counts.total() == 1 else f"{counts.total():,} pieces are"
        listed = ", ".join(repr(name) for name, _ in counts.most_common(5))
        more = f", and {len(counts) - 5} more" if len(counts) > 5 else ""
        return f"line {numbers[0]}:{first_of} {pieces} unknown to the model: {listed}{more}"

    # ---- To text -----------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """One text for each sequence of ids. Special ids and numbers outside the vocabulary are skipped."""
        size = self.vocab_size
        lines = [[self._names[i] for i in line if len(SPECIALS) <= i < size] for line in id_lists(ids)]
        return [self._processor.decode_pieces(line).replace(_SPACE, " ").strip() for line in lines]

    @cached_property
    def spelling(self) -> list[bytes]:
        processor, spellings = self._processor, []
        for id, name in enumerate(self._names):
            model_id = processor.piece_to_id(name)
            if id < len(SPECIALS) or _is_code(name) or processor.is_control(model_id):
                spellings.append(b"\xff" if id == UNK else b"")
            elif processor.is_byte(model_id):
                spellings.append(bytes([int(name[3:5], 16)]))
            else:
                spellings.append(name.encode())
        return spellings

    @cached_property
    def characters(self) -> frozenset[str]:
        return frozenset(" ").union(*(text.decode(errors="ignore") for text in self.spelling))


def _check(pieces: Sequence[str], special: Mapping[str, int], where: str | Path) -> None:
    """Raise `UserError` unless these can be the vocabulary and the ids of its special pieces."""
    if len(set(pieces)) != len(pieces):
        twice = next(piece for piece, n in Counter(pieces).items() if n > 1)
        raise UserError(f"{where}: the piece {twice!r} has two ids; give a vocabulary with one id for each piece")
    if wrong := {name: i for name, i in special.items() if type(i) is not int or not 0 <= i < len(pieces)}:
        name, i = next(iter(wrong.items()))
        raise UserError(f"{where}: the id of {name} is {i!r}: must be from 0 to {len(pieces) - 1}")
    if len({special[name] for name in ("pad", "eos", "unk")}) < 3:
        ids = ", ".join(f"{name} {special[name]}" for name in ("pad", "eos", "unk"))
        raise UserError(f"{where}: the special pieces share an id ({ids}); our model needs one for each")


def _processor(model: bytes, where: str | Path, side: str) -> sentencepiece.SentencePieceProcessor:
    Tokenizer(model, f"{where} ({side})")  # raises `UserError`
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _language(line: str) -> tuple[str, str]:
    """The code of a language that a line begins with, "" without one, and the rest of the line."""
    end = line.find("<<") if line.startswith(">>") else -1
    return ("", line) if end < 0 else (line[: end + 2], line[end + 2 :])


def _is_code(name: str) -> bool:
    return name.startswith(">>") and name.endswith("<<")


# ---- Files -----------------------------------------------------------------------------------------------------------


def read(name: str, content: bytes, where: str | Path | None = None) -> Tokenizer:
    """The tokenizer in a file of a workdir, one of `TOKENIZER_FILES`. `where` names it in errors.

    Raises `UserError` for a wrong content.
    """
    return _of_json(content, where or name) if name == FILE else Tokenizer(content, where or name)


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file of either kind. Raises `UserError` if it can't be read or is of another."""
    content = content_of(path)
    return _of_json(content, path) if content.lstrip()[:1] == b"{" else Tokenizer.load(path)


def _of_json(content: bytes, where: str | Path) -> MarianTokenizer:
    spec = json_object(content, where)
    pieces, special = spec.get("pieces"), spec.get("special")
    if not {"special", *get_args(Side)} & spec.keys():
        raise UserError(
            f"{where}: not a tokenizer for translation; give a SentencePiece model, or the {FILE} that an import wrote"
        )
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise UserError(f"{where}: 'pieces' must be a list of strings")
    if not isinstance(special, dict) or special.keys() != {"pad", "eos", "unk", "start"}:
        raise UserError(f"{where}: 'special' must hold the ids of pad, eos, unk and start")
    return MarianTokenizer(*(_decoded(spec, side, where) for side in get_args(Side)), pieces, special, where)


def _decoded(spec: Mapping[str, Any], side: str, where: str | Path) -> bytes:
    try:
        return base64.b64decode(spec.get(side), validate=True)
    except (TypeError, binascii.Error, ValueError):
        raise UserError(f"{where}: {side!r} must hold a SentencePiece model in base64") from None
