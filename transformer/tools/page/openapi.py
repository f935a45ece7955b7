"""The API as an OpenAPI document, made from the fields that the server checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer.tools.page.fields import TEXT, WHOLE, Endpoint, Schema, array, obj

PREFIX = "/api/1"
MODEL = obj(
    {
        **{"task": TEXT, "name": TEXT, "checkpoint": TEXT, "parameters": WHOLE, "vocabulary": WHOLE},
        **{"longest": WHOLE, "words": WHOLE, "kind": TEXT, "labels": array(TEXT)},
        **{"endpoints": {"type": "object", "additionalProperties": array(TEXT)}},
        **{"decode": {"type": "object"}, "config": {"type": "object"}},
    },
    ["words", "kind", "labels", "decode"],
)
ERROR = obj({"error": TEXT, "field": TEXT}, ["field"])
_ERRORS = {
    "400": "A request to be corrected: `error` names the field and the fix.",
    "403": "The header Host or Origin names another server.",
    "404": "This model has no such endpoint.",
    "408": "The body did not arrive within 10 s.",
    "413": "The body has more than 64 kB.",
    "415": "The body is not application/json.",
    "500": "A fault of the server.",
    "503": "Too many requests are waiting; try again after the seconds of the header Retry-After.",
    "504": "The answer took longer than 30 s.",
}


def document(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """The OpenAPI document of a model with these endpoints."""
    paths = {f"{PREFIX}/model": _path("The model that answers.", obj({}), MODEL)}
    for name, endpoint in endpoints.items():
        fields = {key: field.schema() for key, field in endpoint.fields.items()}
        request = obj(fields, [key for key, field in endpoint.fields.items() if not field.needed])
        paths[f"{PREFIX}/{name}"] = _path(endpoint.told, request, endpoint.answer)
    return {"openapi": "3.1.0", "info": {"title": "A transformer model", "version": "1"}, "paths": paths}


def _path(told: str, request: Schema, answer: Schema) -> dict[str, Any]:
    errors = {status: _answer(about, ERROR) for status, about in _ERRORS.items()}
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    return {
        "post": {"summary": told, "requestBody": body, "responses": {"200": _answer("The answer.", answer), **errors}}
    }


def _answer(told: str, schema: Schema) -> dict[str, Any]:
    return {"description": told, "content": {"application/json": {"schema": schema}}}
