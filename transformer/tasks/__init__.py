"""What can be trained. Each task is a module of its own, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _translation() -> Any:
    from transformer.tasks.translation import Translation

    return Translation


TASKS: dict[str, Callable[[], Any]] = {"translation": _translation}
"""The class of each task, by the name that its config has (`config.RUNS`)."""
