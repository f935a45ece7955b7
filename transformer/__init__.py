"""The Transformer of Vaswani et al. 2017 in JAX and Flax.

    model, params = transformer.load("runs/x")
    logits_BTV = model.apply(params, source_BS, target_BT)
    transformer.Translator.load("runs/x").translate(["A sentence."])
    transformer.save("runs/y", model, params, tokenizer)

docs/api.md describes all names. Importing this package does not import orbax, sentencepiece, grain, tfds or sacrebleu.
The functions that need them import them.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import TYPE_CHECKING, Any

# While `python -m transformer` is imported, Ctrl-C ends the process without a traceback.
if (sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from transformer.config import (
    AlgorithmConfig,
    AttentionConfig,
    ByteLatentConfig,
    ByteLatentModel,
    Config,
    DataConfig,
    DecodeConfig,
    EntropyConfig,
    EvaluateConfig,
    FinetuneConfig,
    InstancesConfig,
    LabelledConfig,
    LanguageModelConfig,
    MaskedConfig,
    MeshConfig,
    ModelConfig,
    NgramConfig,
    ParserConfig,
    ParsingConfig,
    PatchConfig,
    PretrainConfig,
    TextConfig,
    TrainConfig,
    TreebankConfig,
    TuneConfig,
    UserError,
)

if TYPE_CHECKING:
    from transformer.compiled import cache_compiled
    from transformer.data.tokenizer import Tokenizer
    from transformer.inference.beam_search import beam_search
    from transformer.inference.classifier import Classifier
    from transformer.inference.embedder import Embedder
    from transformer.inference.generator import Generator
    from transformer.inference.parser import Parser
    from transformer.inference.translator import Translator
    from transformer.model import Encoder, EncoderDecoder, Model, build
    from transformer.tasks.loading import load
    from transformer.tasks.saving import save

__version__ = "0.1.0"

_LAZY = {
    "Classifier": "transformer.inference.classifier",
    "Embedder": "transformer.inference.embedder",
    "Encoder": "transformer.model",
    "EncoderDecoder": "transformer.model",
    "Model": "transformer.model",
    "Generator": "transformer.inference.generator",
    "Parser": "transformer.inference.parser",
    "Tokenizer": "transformer.data.tokenizer",
    "Translator": "transformer.inference.translator",
    "beam_search": "transformer.inference.beam_search",
    "build": "transformer.model",
    "cache_compiled": "transformer.compiled",
    "load": "transformer.tasks.loading",
    "save": "transformer.tasks.saving",
}

__all__ = [
    "AlgorithmConfig",
    "AttentionConfig",
    "ByteLatentConfig",
    "ByteLatentModel",
    "Classifier",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "Embedder",
    "Encoder",
    "EncoderDecoder",
    "EntropyConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "Generator",
    "InstancesConfig",
    "LabelledConfig",
    "LanguageModelConfig",
    "MaskedConfig",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "NgramConfig",
    "Parser",
    "ParserConfig",
    "ParsingConfig",
    "PatchConfig",
    "PretrainConfig",
    "TextConfig",
    "Tokenizer",
    "TrainConfig",
    "Translator",
    "TreebankConfig",
    "TuneConfig",
    "UserError",
    "beam_search",
    "build",
    "cache_compiled",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'transformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
