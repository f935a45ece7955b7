"""Docstrings of the config classes with their fields, for `help`. They are made when somebody reads them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


class FieldDocs:
    """The `__doc__` of a class: its docstring, then each field with the docstring below it."""

    def __init__(self, summary: str):
        self._summary = summary
        self._whole: str | None = None

    def __get__(self, instance: Any, owner: type) -> str:
        if self._whole is None:
            self._whole = _assembled(self._summary, owner)
        return self._whole


def documented(kind: C) -> C:
    """Class decorator, above `dataclass`: give the class a docstring that describes its fields."""
    kind.__doc__ = FieldDocs(inspect.cleandoc(kind.__doc__ or ""))  # type: ignore[assignment]
    return kind


def _assembled(summary: str, kind: type) -> str:
    lines = [summary, "", "Attributes:"]
    for one in reversed(kind.__mro__[:-1]):  # but for `object`
        try:
            (found,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        except (OSError, TypeError, SyntaxError):  # no source, such as in a frozen program
            return summary
        assert isinstance(found, ast.ClassDef)
        for field, after in zip(found.body, [*found.body[1:], None], strict=True):
            documents = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and documents:
                lines.append(f"    {ast.unparse(field.target)}: {' '.join(str(after.value.value).split())}")
    return "\n".join(lines) if lines[3:] else summary
