"""From a checkpoint to the endpoints of its model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax

from transformer.config import MASKED_HEADS, Config, DecodeConfig, FinetuneConfig, LanguageModelConfig, ParsingConfig
from transformer.tools.page.decoding import OPTIONS, Language, Translation
from transformer.tools.page.reading import Labels, Masked, Trees

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint

_SHOWN = ("encoder_layers", "decoder_layers", "d_model", "d_ff", "heads", "positions")


def kind_of(checkpoint: Checkpoint, decode: DecodeConfig | None) -> tuple[Any, dict[str, Any]]:
    """The kind of model of a checkpoint, and what `/api/1/model` answers. `decode`: None if it writes nothing."""
    kind = _loaded(checkpoint, checkpoint.config, decode)
    shapes = jax.tree.leaves(checkpoint.model.abstract_params)
    model = {
        **{"task": kind.task, "name": "", "checkpoint": str(checkpoint.name)},
        "parameters": sum(math.prod(shape.shape) for shape in shapes),
        **kind.described(),
        "config": {name: getattr(checkpoint.model.config, name) for name in _SHOWN},
        "endpoints": {name: list(endpoint.fields) for name, endpoint in kind.endpoints.items()},
    }
    if options := getattr(kind, "config", None):
        model["decode"] = {name: getattr(options, name) for name in OPTIONS}
    return kind, model


def _loaded(checkpoint: Checkpoint, config: Any, decode: DecodeConfig | None) -> Any:
    if isinstance(config, Config):
        from transformer.inference.translator import Translator

        return Translation(Translator.of([checkpoint], decode))
    if isinstance(config, LanguageModelConfig):
        from transformer.inference.generator import Generator

        return Language(Generator.of([checkpoint], decode))
    if isinstance(config, ParsingConfig):
        from transformer.inference.parser import Parser

        return Trees(Parser.of(checkpoint, decode))
    if isinstance(config, FinetuneConfig):
        from transformer.inference.classifier import Classifier

        return Labels(Classifier.of(checkpoint))
    from transformer.inference.embedder import Embedder
    from transformer.inference.filler import Filler

    filler = Filler.of(checkpoint) if config.model.head in MASKED_HEADS else None
    return Masked(Embedder.of(checkpoint), filler)
