"""Shared by the tests of formats: small workdirs of each task with random parameters, and the programs of a README."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from hf_cases import random_params

from transformer.config import (
    BERT,
    Config,
    DataConfig,
    DecodeConfig,
    FinetuneConfig,
    LabelledConfig,
    LanguageModelConfig,
    MaskedConfig,
    ModelConfig,
    PretrainConfig,
    TextConfig,
)
from transformer.data.labels import Labels
from transformer.data.tokenizer import Tokenizer
from transformer.data.vocabularies import Vocabulary
from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json
from transformer.tasks.vocabulary import files_of
from transformer.tools.new_workdir import new_workdir

LINES = [
    "the red cat sees a big dog",
    "ein roter Hund mag das Haus",
    "drei Vögel finden 1,5 km Weg",
    "a </s> in a text",
]
SMALL = {"d_model": 16, "d_ff": 24, "heads": 4, "dropout": 0.0}
SEQUENCES = ModelConfig(encoder_layers=2, decoder_layers=3, **SMALL)
DECODER = ModelConfig(encoder_layers=0, decoder_layers=2, pre_norm=True, **SMALL)
PIECES = [*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
ENCODER = dataclasses.replace(BERT, encoder_layers=2, max_positions=40, vocab_size=len(PIECES), **SMALL)


def tokenizer() -> Tokenizer:
    return Tokenizer.train(LINES * 20, vocab_size=330)


def write_run(folder: Path, config, files: dict[str, bytes], **progress) -> Path:
    """A workdir of this config, whose model has a vocab_size, with random parameters."""
    progress = {"step": 7, "vocab_size": config.model.vocab_size, "averaged_steps": [7], **progress}
    new_workdir(str(folder), random_params(config.model), config, progress=progress, files=files)
    return folder


def translation_run(folder: Path, model: ModelConfig = SEQUENCES, pieces: Tokenizer | None = None, **decode) -> Path:
    pieces = pieces or tokenizer()
    decode = {"max_source_length": 20, "max_extra_length": 6, "length_normalization": "fairseq", **decode}
    data = DataConfig(max_length=16, languages=("en", "de"))
    config = Config(model.with_vocabulary(pieces.vocab_size), data, decode=DecodeConfig(**decode))
    return write_run(folder, config, files_of(pieces))


def language_run(folder: Path, vocabulary: Vocabulary, model: ModelConfig = DECODER, **decode) -> Path:
    config = LanguageModelConfig(
        model.with_vocabulary(vocabulary.size), TextConfig(context=24), decode=DecodeConfig(**decode)
    )
    return write_run(folder, config, files_of(vocabulary))


def wordpiece() -> WordPiece:
    return WordPiece(tokenizer_json(PIECES, lower_case=True))


def masked_run(folder: Path, head: str) -> Path:
    model = dataclasses.replace(ENCODER, head=head, output_bias=head in ("masked", "pretraining"))
    return write_run(folder, MaskedConfig(model, PretrainConfig(context=30)), files_of(wordpiece()))


def labelled_run(folder: Path, labels: Labels) -> Path:
    head, count = ("token" if labels.kind == "tags" else "sequence"), len(labels.names) or 1
    model = dataclasses.replace(ENCODER, head=head, labels=count, output_bias=False)
    config = FinetuneConfig(model, LabelledConfig(kind=labels.kind, context=30))
    return write_run(folder, config, {**files_of(wordpiece()), **dict([labels.file])})


def programs_of(folder: Path) -> str:
    """The Python of the README.md in a folder."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S))


def run_readme(folder: Path, monkeypatch) -> dict:
    """The names that the README's programs define, run inside the folder."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(compile(programs_of(folder), str(folder / "README.md"), "exec"), names)
    return names


def random_ids(rng: np.random.Generator, *shape: int, size: int) -> np.ndarray:
    """Ids of ordinary pieces."""
    return rng.integers(4, size, size=shape).astype(np.int32)
