"""Configuration of the whole project: frozen dataclasses, conversion to and from JSON, and validation rules.

Needs only the standard library. You can copy this package and `model/` side by side into a package of any name:
both import relatively.
"""

from .codec import check_fields, differences, flatten
from .errors import Interrupted, UserError, shown
from .model import (
    BASE,
    BERT,
    BIG,
    BOS,
    EOS,
    GPT2,
    KINDS,
    LABEL_HEADS,
    MASKED_HEADS,
    PAD,
    POOLED_HEADS,
    SPECIALS,
    UNK,
    AttentionConfig,
    ModelConfig,
    check_model,
)
from .numbers import whole_number
from .sections import (
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    MeshConfig,
    TextConfig,
    TrainConfig,
    check_decode,
)
from .tasks import (
    RUNS,
    Config,
    LanguageModelConfig,
    check,
    conflicts,
    from_json,
    require_task,
    require_translation,
    resumable,
    to_json,
    with_micro_batches,
)

__all__ = [
    "BASE",
    "BERT",
    "BIG",
    "BOS",
    "EOS",
    "GPT2",
    "KINDS",
    "LABEL_HEADS",
    "MASKED_HEADS",
    "PAD",
    "POOLED_HEADS",
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
    "require_task",
    "require_translation",
    "resumable",
    "shown",
    "to_json",
    "whole_number",
    "with_micro_batches",
]
