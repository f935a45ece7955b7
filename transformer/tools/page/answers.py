"""Answers that several kinds of models give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformer.tools.attention import MOST_NUMBERS
from transformer.tools.attention.page import MOST, packed_kinds
from transformer.tools.page.fields import Wrong

if TYPE_CHECKING:
    from transformer.inference.attention import Attended


def attention(request: Mapping[str, Any], attended: Attended) -> dict[str, Any]:
    """The attention as docs/attention.md describes it; if the request asks for it, in bytes.

    Raises `Wrong` if there are too many weights.
    """
    small = bool(request.get("packed"))
    most = MOST if small else MOST_NUMBERS
    if attended.count > most:
        raise Wrong(
            None, f"these are {attended.count:,} weights, and an answer has at most {most:,}; give a shorter text"
        )
    return attended.head() | {"attention": packed_kinds(attended)} if small else attended.json()
