"""Translate with several processes: each translates a share, and all receive the complete result."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax

from transformer.inference.tally import Tally
from transformer.inference.translator import Translator
from transformer.training.processes import all_or_none, gather


def translate_shares(translator: Translator, sources: Sequence[str]) -> list[str]:
    """One translation for each source. Each process translates its share; every process returns all of them."""
    n, index = jax.process_count(), jax.process_index()
    begin, end = (len(sources) * i // n for i in (index, index + 1))
    with all_or_none():
        translations = translator.translate(sources[begin:end], first_line=begin + 1)
    return [text for share in gather(json.dumps(translations)) for text in json.loads(share)]


def refuse_broken(translator: Translator, workdir: str) -> int:
    """The number of translations, over all processes, whose score is not a finite number.

    Raises `UserError`, naming the workdir, if no score is finite.
    """
    counts = [json.loads(text) for text in gather(json.dumps([translator.tally.all, translator.tally.broken]))]
    tally = Tally(*map(sum, zip(*counts, strict=True)))
    tally.refuse(f"{workdir}: ")
    return tally.broken
