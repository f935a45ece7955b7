"""The Transformer of Vaswani et al. 2017 in JAX and Flax.

    model, params = transformer.load("runs/x")
    logits_BTV = model.apply(params, source_BS, target_BT)
    transformer.Translator.load("runs/x").translate(["A sentence."])

Importing this package does not import orbax, sentencepiece, grain, tfds or sacrebleu. The functions that need them
import them.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformer.config import (
    Config,
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    LanguageModelConfig,
    MeshConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    UserError,
)

__version__ = "0.1.0"

_LAZY = {
    "EncoderDecoder": "transformer.model",
    "Model": "transformer.model",
    "build": "transformer.model",
    "beam_search": "transformer.inference.beam_search",
    "Generator": "transformer.inference.generator",
    "Translator": "transformer.inference.translator",
    "load": "transformer.checkpoint",
}

__all__ = [
    "Config",
    "DataConfig",
    "DecodeConfig",
    "EncoderDecoder",
    "EvaluateConfig",
    "Generator",
    "LanguageModelConfig",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "TextConfig",
    "TrainConfig",
    "Translator",
    "UserError",
    "beam_search",
    "build",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'transformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
