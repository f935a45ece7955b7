"""The part of JSON Schema that the API's document uses."""

from __future__ import annotations

from typing import Any

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
WORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "description"),
    *("minimum", "maximum", "maxItems"),
}


def check(value: Any, schema: dict[str, Any], where: str = "answer") -> None:
    """Assert that a value is as its schema says."""
    assert schema.keys() <= WORDS, (where, schema)
    if "enum" in schema:
        assert value in schema["enum"], where
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        number = not isinstance(value, bool) or "boolean" in types
        assert number and isinstance(value, tuple(t for n in types for t in _listed(TYPES[n]))), (where, value, types)
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert set(schema.get("required", ())) <= value.keys(), (where, value.keys())
        for name, inner in value.items():
            assert name in known or more, (where, name)
            check(inner, known.get(name, more if isinstance(more, dict) else {}), f"{where}.{name}")
    if isinstance(value, list):
        for i, inner in enumerate(value):
            check(inner, schema.get("items", {}), f"{where}[{i}]")


def _listed(types: Any) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)
