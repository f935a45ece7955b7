"""The formats that `export` writes and `import` reads, as data: the command line and docs/formats.md are made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformer.tools import ctranslate2, jax_export, safetensors_folder
from transformer.tools.ctranslate2 import QUANTIZATIONS
from transformer.tools.hf import bert_folder, gpt2_folder, marian


class Export(NamedTuple):
    """A format that `export` writes."""

    write: Callable[..., Path]
    """(workdir, out, checkpoint) -> the folder."""
    what: str
    """Who reads it, and which models it holds."""


class Import(NamedTuple):
    """A format that `import` reads."""

    read: Callable[[str, str], None]
    """(folder, workdir)"""
    what: str
    """What wrote the folder."""


EXPORTS = {
    "hf-marian": Export(marian.export, "MarianMTModel of transformers, for translation"),
    "hf-gpt2": Export(gpt2_folder.export, "GPT2LMHeadModel of transformers, for a language model"),
    "hf-bert": Export(bert_folder.export, "BertModel, BertForPreTraining, ... of transformers, for an encoder alone"),
    "ctranslate2": Export(
        ctranslate2.export, "Translator of CTranslate2, for translation; Generator, for a language model"
    ),
    "jax": Export(jax_export.write_folder, "programs that jax alone runs, of any model"),
    "safetensors": Export(safetensors_folder.export, "the parameters with our names, of any model"),
}
IMPORTS = {
    "hf-gpt2": Import(gpt2_folder.import_folder, "GPT2LMHeadModel"),
    "hf-bert": Import(
        bert_folder.import_folder,
        "BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification or BertForTokenClassification",
    ),
    "safetensors": Import(safetensors_folder.import_folder, "export --to safetensors"),
}
__all__ = ["EXPORTS", "IMPORTS", "QUANTIZATIONS", "Export", "Import"]
