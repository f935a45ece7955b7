"""Decode with several processes: each decodes a share, and all receive the complete result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from transformer.inference.tally import Tally
from transformer.inference.translator import Translator
from transformer.training.processes import all_or_none, gather

T = TypeVar("T")


def in_shares(items: Sequence[T], compute: Callable[[Sequence[T], int], Sequence[Any]]) -> list[Any]:
    """A result for each item. Each process computes those of its share; every process returns all of them.

    `compute(share, number of its first item from 1)` returns results that JSON can hold.
    """
    n, index = jax.process_count(), jax.process_index()
    begin, end = (len(items) * i // n for i in (index, index + 1))
    with all_or_none():
        results = compute(items[begin:end], begin + 1)
    return [one for share in gather(json.dumps(results)) for one in json.loads(share)]


def translate_shares(translator: Translator, sources: Sequence[str]) -> list[str]:
    """One translation for each source (see `in_shares`)."""
    return in_shares(sources, lambda share, first: translator.translate(share, first_line=first))


def refuse_broken(translator: Translator, workdir: str) -> int:
    """The number of translations, over all processes, whose score is not a finite number.

    Raises `UserError`, naming the workdir, if no score is finite.
    """
    counts = [json.loads(text) for text in gather(json.dumps([translator.tally.all, translator.tally.broken]))]
    tally = Tally(*map(sum, zip(*counts, strict=True)))
    tally.refuse(f"{workdir}: ")
    return tally.broken
