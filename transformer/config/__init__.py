"""Configuration of the whole project: frozen dataclasses, conversion to and from JSON, and validation rules.

Needs only the standard library. You can copy this package and `model/` together into another project.
"""

from transformer.config.codec import check_fields, differences, flatten
from transformer.config.errors import Interrupted, UserError, shown
from transformer.config.model import (
    BASE,
    BIG,
    BOS,
    EOS,
    GPT2,
    KINDS,
    PAD,
    SPECIALS,
    UNK,
    AttentionConfig,
    ModelConfig,
    check_model,
)
from transformer.config.numbers import whole_number
from transformer.config.sections import (
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    MeshConfig,
    TextConfig,
    TrainConfig,
    check_decode,
)
from transformer.config.tasks import (
    RUNS,
    Config,
    LanguageModelConfig,
    check,
    conflicts,
    from_json,
    require_translation,
    resumable,
    to_json,
    with_micro_batches,
)

__all__ = [
    "BASE",
    "BIG",
    "BOS",
    "EOS",
    "GPT2",
    "KINDS",
    "PAD",
    "RUNS",
    "SPECIALS",
    "UNK",
    "AttentionConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "EvaluateConfig",
    "Interrupted",
    "LanguageModelConfig",
    "MeshConfig",
    "ModelConfig",
    "TextConfig",
    "TrainConfig",
    "UserError",
    "check",
    "check_decode",
    "check_fields",
    "check_model",
    "conflicts",
    "differences",
    "flatten",
    "from_json",
    "require_translation",
    "resumable",
    "shown",
    "to_json",
    "whole_number",
    "with_micro_batches",
]
