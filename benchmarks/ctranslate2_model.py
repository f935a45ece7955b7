"""Our weights as a CTranslate2 model whose pieces are called by their ids. Run by `systems.py convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformer.checkpoint import Checkpoints
from transformer.config import SPECIALS
from transformer.tools.ctranslate2 import spec_of


def convert(run: str, ctranslate2: str, **_: Any) -> None:
    """Write our last checkpoint as a CTranslate2 model. There need be no tokenizer, and no piece is forbidden."""
    opened = Checkpoints(run).open("last")
    config = opened.config.model.with_vocabulary(opened.progress["vocab_size"])
    pieces = [*SPECIALS, *map(str, range(len(SPECIALS), config.vocab_size))]
    spec = spec_of(opened.params(), config, pieces, never=(), positions=1024)
    spec.optimize(quantization=None)
    Path(ctranslate2).mkdir(parents=True, exist_ok=True)
    spec.save(ctranslate2)
