"""The tasks that can be trained. Each is one module, which is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _translation() -> Any:
    from transformer.tasks.translation import Translation

    return Translation


def _language_model() -> Any:
    from transformer.tasks.language_model import LanguageModel

    return LanguageModel


def _masked() -> Any:
    from transformer.tasks.masked import Masked

    return Masked


def _finetune() -> Any:
    from transformer.tasks.finetune import Finetune

    return Finetune


def _parsing() -> Any:
    from transformer.tasks.parsing import Parsing

    return Parsing


def _algorithm() -> Any:
    from transformer.tasks.algorithm import AlgorithmTask

    return AlgorithmTask


def _byte_latent() -> Any:
    from transformer.tasks.byte_latent import ByteLatentTask

    return ByteLatentTask


TASKS: dict[str, Callable[[], Any]] = {
    "translation": _translation,
    "language_model": _language_model,
    "masked": _masked,
    "labels": _finetune,
    "parsing": _parsing,
    "algorithm": _algorithm,
    "byte_latent": _byte_latent,
}
"""Name of a task, as in `config.RUNS` -> a function that imports and returns its class."""
