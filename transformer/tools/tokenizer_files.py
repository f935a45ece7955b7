"""The tokenizer of a checkpoint as files that other programs read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from transformer.checkpoint import Checkpoint
from transformer.config import SPECIALS, UNK, Config, LanguageModelConfig, UserError
from transformer.data.marian import MarianTokenizer
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabularies import Vocabulary
from transformer.tasks.vocabulary import TOKENIZERS, VOCABULARIES
from transformer.tasks.vocabulary import vocabulary_in as vocabulary_of_checkpoint
from transformer.tools.hf.vocabulary import files_of


def vocabulary_of(opened: Checkpoint) -> Vocabulary | None:
    """The vocabulary of a language model; None if it was imported without one."""
    has_one = any(map(opened.has, VOCABULARIES.names))
    return vocabulary_of_checkpoint(opened, VOCABULARIES) if has_one else None


def tokenizer_files(opened: Checkpoint) -> dict[str, Any]:
    """File name -> content, bytes or JSON.

    Of translation: source.spm and target.spm, which SentencePiece reads; each cleans text as our tokenizer does. Of a
    language model: tokenizer.json, for the package tokenizers. Of other tasks: the files of the checkpoint.
    """
    config = opened.config
    if isinstance(config, Config):
        tokenizer = vocabulary_of_checkpoint(opened, TOKENIZERS)
        return {f"{side}.spm": tokenizer.model_of(side) for side in ("source", "target")}
    if isinstance(config, LanguageModelConfig):
        vocabulary = vocabulary_of(opened)
        if vocabulary is None:
            return {}
        return files_of(vocabulary, config.data.context, begins=config.data.documents != "none")
    return {name: content for name, content in opened.files().items() if name != "config.json"}


def names_in(tokenizer_json: bytes, size: int) -> list[str]:
    """The name of each of the first `size` ids in a tokenizer.json; <7> for an id 7 without one."""
    spec: Mapping[str, Any] = json.loads(tokenizer_json)
    ids = dict(spec["model"]["vocab"]) | {token["content"]: token["id"] for token in spec["added_tokens"]}
    names = {id: name for name, id in ids.items()}
    return [names.get(id, f"<{id}>") for id in range(size)]


def refuse_twins(pieces: Sequence[str], library: str) -> None:
    """Raise `UserError` if two pieces have one name, by which `library` finds them."""
    if twice := [name for name, count in Counter(pieces).items() if count > 1]:
        raise UserError(
            f"the tokenizer has two pieces named {twice[0]!r}: {library} can't tell them apart; export the model with "
            "--to safetensors"
        )


_PIECES = """
def pieces_of(line):
    return source.encode(line, out_type=str)
"""
_PIECES_AFTER_CODE = """
def pieces_of(line):
    end = line.find("<<") + 2 if line.startswith(">>") and "<<" in line else 0  # the code of a language, as in >>de<<
    return [line[:end]] * (end > 0) + source.encode(line[end:], out_type=str)
"""
_TEXT = """
def text_of(pieces):
    return target.decode([piece for piece in pieces if piece != "{unknown}"]){strip}
"""


def cutting(tokenizer: Tokenizer) -> str:
    """Two functions for the README.md of a folder with source.spm and target.spm: `pieces_of`, the names of the pieces
    of a line, and `text_of`, the text of such names."""
    marian = isinstance(tokenizer, MarianTokenizer)
    strip = '.replace("\\u2581", " ").strip()' if marian else ""
    text = _TEXT.format(unknown=SPECIALS[UNK], strip=strip)
    return f"{(_PIECES_AFTER_CODE if marian else _PIECES).strip()}\n\n\n{text.strip()}"
