"""The fields of requests: what each endpoint takes, its bounds, and their check. `openapi.py` describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformer.config import UserError
from transformer.data.text import RepeatedKey, read_json

MOST_BYTES = 64 * 1024
"""The most bytes of a request."""
MOST_PIECES = 512
"""The most pieces of a text."""
MOST_BEAMS = 16
MOST_STRINGS = 8
"""The most strings in a list, such as of stop strings."""

Schema = dict[str, Any]


class Wrong(UserError):
    """A request that the client has to correct."""

    def __init__(self, field: str | None, message: str, status: int = 400):
        super().__init__(message if field is None else f"{field}: {message}")
        self.field, self.status = field, status


class Field(NamedTuple):
    """A field of a request."""

    type: str
    """As in JSON Schema: string, integer, number, boolean; or strings: a list of strings."""
    told: str
    needed: bool = False
    least: float | None = None
    most: float | None = None

    def schema(self) -> Schema:
        """The field in JSON Schema."""
        if self.type == "strings":
            found = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STRINGS}
        else:
            found = {"type": self.type}
        bounds = {"minimum": self.least, "maximum": self.most}
        return found | {k: v for k, v in bounds.items() if v is not None} | {"description": self.told}

    def check(self, name: str, value: Any) -> None:
        """Raise `Wrong` if the value breaks a rule."""
        wanted = {
            "string": ("a string", isinstance(value, str)),
            "integer": ("a whole number", isinstance(value, int) and not isinstance(value, bool)),
            "number": ("a number", isinstance(value, int | float) and not isinstance(value, bool)),
            "boolean": ("true or false", isinstance(value, bool)),
            "strings": (
                f"a list of at most {MOST_STRINGS} strings",
                isinstance(value, list) and len(value) <= MOST_STRINGS and all(isinstance(x, str) for x in value),
            ),
        }
        what, right = wanted[self.type]
        if self.least is not None and self.most is not None:
            what += f" from {self.least} to {self.most}"
        elif self.least is not None:
            what += f", at least {self.least}"
        low, high = -math.inf if self.least is None else self.least, math.inf if self.most is None else self.most
        if not right or (self.type in ("integer", "number") and not low <= value <= high):
            raise Wrong(name, f"must be {what}")


@dataclass(frozen=True)
class Endpoint:
    """What a model answers under `/api/1/NAME`."""

    told: str
    fields: Mapping[str, Field]
    answer: Schema
    """The answer in JSON Schema."""
    work: Callable[[Sequence[dict[str, Any]], Any], Sequence[dict[str, Any] | UserError]]
    """From requests and an event that ends the work to answers, or errors in their place."""
    group: Callable[[dict[str, Any]], Hashable] = lambda request: None
    """Requests with the same value may be computed together."""


def read(body: bytes, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The checked fields of a request. Raises `Wrong`, whose message holds nothing of the texts in it."""
    try:
        request = read_json(body.decode("utf-8"))
        json.dumps(request, allow_nan=False)
    except UnicodeDecodeError:
        raise Wrong(None, "the body is not valid UTF-8; send JSON in UTF-8") from None
    except RepeatedKey:
        raise Wrong(None, "the body has a field twice; give each field once") from None
    except (ValueError, RecursionError):
        raise Wrong(None, 'the body is not JSON; send an object such as {"text": "..."}') from None
    if not isinstance(request, dict):
        raise Wrong(None, "the body is not a JSON object; send one, with a name for each field")
    for name in request:
        if name not in fields:
            known = ", ".join(fields) or "no fields"
            shown = name if name.isascii() and name.isidentifier() and len(name) <= 40 else "a field"
            raise Wrong(shown, f"unknown; this endpoint takes {known}")
    for name, field in fields.items():
        if name in request:
            field.check(name, request[name])
            request[name] = _text(request[name])
        elif field.needed:
            raise Wrong(name, f"missing; give {field.told[0].lower()}{field.told[1:]}")
    return request


def _text(value: Any) -> Any:
    """The value without lone surrogates, which JSON can hold but no tokenizer takes."""
    if isinstance(value, list):
        return [_text(each) for each in value]
    return value.encode("utf-8", errors="replace").decode() if isinstance(value, str) else value


def check_pieces(field: str, count: int, most: float = MOST_PIECES) -> None:
    """Raise `Wrong` for a text of too many pieces."""
    most = int(min(most, MOST_PIECES))
    if count > most:
        raise Wrong(field, f"has {count} pieces, and the most is {most}; make it shorter")


def check_filled(field: str, text: str) -> None:
    """Raise `Wrong` for a blank text."""
    if not text.strip():
        raise Wrong(field, "is empty; give some words")


def each(requests: Sequence[dict[str, Any]], answer: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """The answer to each request, or the error in its place."""
    found: list[Any] = []
    for request in requests:
        try:
            found.append(answer(request))
        except UserError as error:
            found.append(error)
    return found


# ---- Parts of schemas ------------------------------------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def obj(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with these fields alone."""
    needed = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": needed, "additionalProperties": False}


ATTENTION = obj(
    {
        **{"format": TEXT, "version": WHOLE, "task": TEXT},
        "sides": {
            "type": "object",
            "additionalProperties": obj(
                {"pieces": array(TEXT), "text": TEXT, "log_probs": array(NUMBER_OR_NULL), "parts": array(WHOLE)},
                ["text", "log_probs", "parts"],
            ),
        },
        "attention": {
            "type": "object",
            "additionalProperties": obj(
                {"queries": TEXT, "keys": TEXT, "layers": WHOLE, "heads": WHOLE, "weights": array({}), "packed": TEXT},
                ["weights", "packed"],
            ),
        },
    }
)
PACKED = Field(
    "boolean",
    "Give the weights in a byte each, as text: base64 of deflated bytes, 255 times the square root of each weight.",
)
