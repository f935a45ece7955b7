"""Checks of text that Python callers give: a mistake raises a one-line error that names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from transformer.config import UserError, shown


def strings(name: str, given: Iterable[str], *, exact: bool = False) -> list[str]:
    """The strings as a list. Replaces lone surrogates, which no tokenizer takes, by "?"; refuses them if `exact`.

    Raises `UserError` for anything other than strings one after another. `name`: the argument, for messages.
    """
    given = list(require_iterable(name, given, ordered=not exact))
    for i, text in enumerate(given):
        require_string(f"{name}[{i}]", text)
    whole = [text.encode("utf-8", errors="replace").decode() for text in given]
    if exact and whole != given:
        raise UserError(f"{name} holds half a surrogate pair, which is not text; correct it")
    return whole


def listed(name: str, given: Iterable[Any]) -> list[Any]:
    """What is given as a list; arrays in it become lists, too. Raises `UserError` where `require_iterable` does."""
    refuse_table(name, given)
    try:
        require_iterable(name, given)
    except UserError:
        raise UserError(f"{name} = {shown(given)}: give a list of {name}") from None
    return [x.tolist() if isinstance(x, np.ndarray) else x for x in given]


def require_iterable(name: str, given: Any, *, ordered: bool = True) -> Iterable[Any]:
    """Raise `UserError` unless this is an iterable, and not a string, nor a dict or, where the order counts, a set."""
    refuse_table(name, given)
    no_list = (str, bytes, dict, set, frozenset) if ordered else (str, bytes)
    if isinstance(given, no_list) or not isinstance(given, Iterable) or getattr(given, "shape", None) == ():
        raise UserError(f"{name} is a {type(given).__name__}: give a list of strings")
    return given


def refuse_table(name: str, given: Any) -> None:
    """Raise `UserError` for a table, such as a DataFrame: a loop over it gives the names of its columns."""
    if hasattr(given, "columns"):
        raise UserError(f"{name} is a {type(given).__name__}: give one of its columns, such as df['text']")


def require_string(name: str, text: Any) -> None:
    """Raise `UserError` unless this is a string."""
    if not isinstance(text, str):
        raise UserError(f"{name} is a {type(text).__name__}: give strings")
