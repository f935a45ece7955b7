"""Pictures of attention: a page of HTML, a PNG, or its numbers as JSON."""

from __future__ import annotations

from transformer.config import UserError
from transformer.inference.attention import Attended
from transformer.streams import to_json
from transformer.tools.attention.page import html

MOST_NUMBERS = 4_000_000
"""The most weights in a JSON file, of about 8 bytes each."""


def written(attended: Attended, ending: str) -> bytes:
    """The content of a file with this ending. Raises `UserError` if it would be too large."""
    if ending == ".html":
        return html(attended)
    if ending == ".json":
        if attended.count > MOST_NUMBERS:
            raise UserError(
                f"these are {attended.count:,} weights, and a .json holds at most {MOST_NUMBERS:,}; write an .html, or "
                "give a shorter text"
            )
        return (to_json(attended.json()) + "\n").encode()
    from transformer.tools.attention.picture import png

    return png(attended)
