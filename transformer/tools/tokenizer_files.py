"""The tokenizer of a checkpoint as files that other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformer.checkpoint import Checkpoint
from transformer.config import Config, LanguageModelConfig
from transformer.data.vocabularies import Vocabulary
from transformer.tasks.vocabulary import TOKENIZERS, VOCABULARIES
from transformer.tasks.vocabulary import vocabulary_in as vocabulary_of_checkpoint
from transformer.tools.hf.vocabulary import files_of


def vocabulary_of(opened: Checkpoint) -> Vocabulary | None:
    """The vocabulary of a language model; None if it was imported without one."""
    has_one = any((opened.path / name).exists() for name in VOCABULARIES.names)
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
        return {} if vocabulary is None else files_of(vocabulary, config.data.context)
    return {name: content for name, content in opened.files().items() if name != "config.json"}


def names_in(tokenizer_json: bytes, size: int) -> list[str]:
    """The name of each of the first `size` ids in a tokenizer.json; <7> for an id 7 without one."""
    spec: Mapping[str, Any] = json.loads(tokenizer_json)
    ids = dict(spec["model"]["vocab"]) | {token["content"]: token["id"] for token in spec["added_tokens"]}
    names = {id: name for name, id in ids.items()}
    return [names.get(id, f"<{id}>") for id in range(size)]
