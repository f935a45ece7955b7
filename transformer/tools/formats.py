"""The formats that `export` writes and `import` reads, as data: the command line and docs/formats.md are made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import BASE, BERT, GPT2, AttentionConfig, ModelConfig, UserError, check_model
from transformer.tools import ctranslate2, jax_export, safetensors_folder
from transformer.tools.ctranslate2 import QUANTIZATIONS
from transformer.tools.hf import bert, bert_folder, gpt2, gpt2_folder, marian, marian_folder

__all__ = ["EXPORTS", "IMPORTS", "QUANTIZATIONS", "VARIANTS", "Export", "Import", "expressible"]


class Export(NamedTuple):
    """A format that `export` writes."""

    write: Callable[..., Path]
    """(workdir, out, checkpoint) -> the folder."""
    what: str
    """Who reads it, and which models it holds."""
    extra: str
    """The extra of this distribution that installs what it needs."""
    models: Mapping[str, ModelConfig] = {}
    """A model of each kind that it holds, by the name of the kind; empty = it holds every model."""
    refuse: Callable[[ModelConfig], None] = lambda model: None
    """Raises `UserError` for a model that it can't express."""


class Import(NamedTuple):
    """A format that `import` reads."""

    read: Callable[[str, str], None]
    """(folder, workdir)"""
    what: str
    """What wrote the folder."""
    extra: str
    fixed: Mapping[str, Any] = {}
    """Fields of its config.json -> the only value that our model can express."""
    activations: tuple[str, ...] = ()
    """The activations, by their names there."""


EXPORTS = {
    "hf-marian": Export(
        *(marian_folder.export, "MarianMTModel of transformers, for translation", "hf"),
        *({"translation": BASE}, marian.refuse_inexpressible),
    ),
    "hf-gpt2": Export(
        *(gpt2_folder.export, "GPT2LMHeadModel of transformers, for a language model", "hf"),
        *({"language model": GPT2}, gpt2.refuse_inexpressible),
    ),
    "hf-bert": Export(
        *(bert_folder.export, "BertModel, BertForPreTraining, ... of transformers, for an encoder alone", "hf"),
        *({"encoder": BERT}, bert.refuse_inexpressible),
    ),
    "ctranslate2": Export(
        *(ctranslate2.export, "Translator of CTranslate2, for translation; Generator, for a language model"),
        *("ctranslate2", {"translation": BASE, "language model": GPT2}, ctranslate2.refuse_inexpressible),
    ),
    "jax": Export(jax_export.write_folder, "programs that jax alone runs, of any model", "jax"),
    "safetensors": Export(safetensors_folder.export, "the parameters with our names, of any model", "hf"),
}
IMPORTS = {
    "hf-marian": Import(
        *(marian_folder.import_folder, "MarianMTModel, such as Opus-MT", "hf", marian.FIXED, tuple(marian.ACTIVATIONS)),
    ),
    "hf-gpt2": Import(
        *(gpt2_folder.import_folder, "GPT2LMHeadModel", "hf", gpt2.FIXED, tuple(gpt2.ACTIVATIONS)),
    ),
    "hf-bert": Import(
        bert_folder.import_folder,
        "BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification or BertForTokenClassification",
        *("hf", bert.FIXED, tuple(bert.ACTIVATIONS)),
    ),
    "safetensors": Import(safetensors_folder.import_folder, "export --to safetensors", "hf"),
}


# ---- What a format can express ---------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "positions": tuple({"positions": x} for x in ("sinusoidal", "learned", "rotary", "none")),
    "activation": tuple({"activation": x} for x in ("relu", "gelu", "gelu_tanh", "swish")),
    "pre_norm": ({"pre_norm": False}, {"pre_norm": True}),
    "input_norm": ({"input_norm": False}, {"input_norm": True}),
    "norm_eps": tuple({"norm_eps": x} for x in (1e-6, 1e-5, 1e-12)),
    "norm_bias": ({"norm_bias": True}, {"norm_bias": False}),
    "attention_bias": ({"attention_bias": False}, {"attention_bias": True}),
    "output_bias": ({"output_bias": False}, {"output_bias": True}),
    "embedding_scale": ({"embedding_scale": True}, {"embedding_scale": False}),
    "tied_embeddings": tuple({"tied_embeddings": x} for x in ("all", "target", "none")),
    "attention_score": tuple({"attention_score": x} for x in ("dot", "unscaled", "additive")),
    "values": ({"values": "projected"}, {"values": "keys"}),
    "d_k, d_v": ({"d_k": 32, "d_v": 32}, {"d_k": 32, "d_v": 48}),
    "kv_heads": ({"kv_heads": 2}, {"kv_heads": 1}),
    "kv_sharing": ({"kv_sharing": 2},),
    **{
        f"{kind}_attention": tuple(
            {f"{kind}_attention": AttentionConfig(**{name: value})}
            for name, value in (("kv_heads", 1), ("kv_sharing", 2), ("window", 8))
        )
        for kind in ("encoder", "decoder", "cross")
    },
    "token_types": ({"token_types": 0}, {"token_types": 2}),
    "head": tuple(
        {"head": x, "labels": 3 if x in ("sequence", "token") else None}
        for x in ("none", "masked", "pretraining", "sequence", "token")
    ),
    "hard_attention": ({"hard_attention": False}, {"hard_attention": True, "head": "token", "labels": 3}),
    "position_offset": ({"position_offset": 8},),
    "dtype": ({"dtype": "float32"}, {"dtype": "bfloat16"}),
}
"""Changes of a model, by the fields that they change: the rows of docs/formats.md."""
WITHOUT_ROWS = (
    *("encoder_layers", "decoder_layers", "d_model", "d_ff", "heads", "vocab_size", "target_vocab_size", "labels"),
    *("max_positions", "dropout", "attention_dropout", "activation_dropout", "initializer", "attention_kernel"),
)
"""Fields without a row: sizes, which every format can express, and what changes only training or speed."""


def expressible(export: Export, kind: str, change: Mapping[str, Any]) -> bool | None:
    """Whether a format can express the model of a kind with this change; None if there is no such model, or if the
    change is of a part that this kind lacks."""
    model = export.models[kind]
    lacks = {"encoder": ("decoder", "cross"), "language model": ("encoder", "cross")}.get(kind, ())
    if any(f"{part}_attention" in change for part in lacks):
        return None
    try:
        check_model(changed := dataclasses.replace(model, **change))
    except UserError:
        return None
    try:
        export.refuse(changed)
    except UserError:
        return False
    return True
