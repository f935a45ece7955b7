"""The tasks that can be trained. Each is one module, which is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _translation() -> Any:
    from transformer.tasks.translation import Translation

    return Translation


TASKS: dict[str, Callable[[], Any]] = {"translation": _translation}
"""Name of a task, as in `config.RUNS` -> a function that imports and returns its class."""
