"""docs/formats.md is what docs/formats.py writes; its table has a row for each field that matters, and is right."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

from transformer.config import ModelConfig
from transformer.tools.formats import EXPORTS, IMPORTS, VARIANTS, WITHOUT_ROWS, expressible

ROOT = Path(__file__).parents[2]
PAGE = runpy.run_path(str(ROOT / "docs" / "formats.py"))


def test_the_page_is_that_of_this_code() -> None:
    written = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert PAGE["page"]() == written, "run `python docs/formats.py` and commit the page"


def test_each_field_of_a_model_has_a_row_or_a_reason() -> None:
    """And each field's own values come first: what a row changes is what it names."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    in_rows = {name for changes in VARIANTS.values() for change in changes for name in change} - {"labels"}
    assert in_rows | set(WITHOUT_ROWS) == fields and not in_rows & set(WITHOUT_ROWS)


def test_all_values_of_a_choice_have_a_row() -> None:
    from typing import get_args, get_type_hints

    for name, hint in get_type_hints(ModelConfig).items():
        values = (False, True) if hint is bool else get_args(hint)
        if name in VARIANTS and values and all(isinstance(x, str | bool) for x in values):
            assert {change[name] for change in VARIANTS[name]} == set(values), name


def test_each_model_of_a_format_can_be_expressed() -> None:
    for name, one in EXPORTS.items():
        for kind in one.models:
            assert expressible(one, kind, {}) is True, (name, kind)
    assert set(EXPORTS) >= {"hf-marian", "hf-gpt2", "hf-bert", "ctranslate2", "jax", "safetensors"}
    assert set(IMPORTS) >= {"hf-gpt2", "hf-bert", "safetensors"}


def test_what_a_kind_lacks_has_no_cell() -> None:
    (window,) = [change for change in VARIANTS["cross_attention"] if change["cross_attention"].window]
    assert expressible(EXPORTS["hf-gpt2"], "language model", window) is None
    assert expressible(EXPORTS["hf-marian"], "translation", window) is False
    assert expressible(EXPORTS["hf-marian"], "translation", {"head": "masked"}) is None  # there is no such model
