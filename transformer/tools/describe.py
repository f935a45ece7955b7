"""Parameter counts of a config, matrix by matrix, and the paper's counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from transformer.config import BASE, BIG, CONTINUING, Config, FinetuneConfig, MaskedConfig, ParsingConfig
from transformer.data import vocabularies, wordpiece
from transformer.data.running import texts
from transformer.data.vocabulary_training import vocabulary
from transformer.model import build

# Parameters in millions, Table 3 of the paper. Our count with the paper's vocabulary of about 37,000 pieces: 63.05 and
# 214.17.
PAPER = {"base": (BASE, 65), "big": (BIG, 213)}
PAPER_VOCABULARY = 37_000


def vocabulary_size(config: Any) -> int:
    """The number of pieces in the vocabulary of a config of any task.

    Without model.vocab_size it reads the start, the tokenizer, or the text whose characters are the pieces. Raises
    `UserError` if that can't be read.
    """
    data = config.data
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    if config.train.init_from is not None:
        from transformer.checkpoint import Checkpoints

        return Checkpoints(config.train.init_from).open().progress["vocab_size"]
    if isinstance(config, Config) and data.tokenizer is not None:
        from transformer.data.tokenizer import Tokenizer

        return Tokenizer.load(data.tokenizer).vocab_size
    if isinstance(config, MaskedConfig | FinetuneConfig | ParsingConfig) and data.tokenizer is not None:
        return wordpiece.load(data.tokenizer).size
    if not isinstance(config, CONTINUING):
        return data.vocab_size
    if data.tokenizer is not None:
        return vocabularies.load(data.tokenizer).size
    if data.pieces == "characters":
        return vocabulary(data, texts(data).train).size
    return vocabularies.Bytes().size if data.pieces == "bytes" else data.vocab_size


def describe(config: Any) -> Iterator[str]:
    """Lines of a table: for each kind of parameter its shape, how often it occurs, the count of its numbers, and its
    initialisation; then the total, and the paper's count for a model of the paper."""
    pieces = vocabulary_size(config)
    model = build(config.model.with_vocabulary(pieces))
    starts = model.starts
    rows: dict[tuple[str, tuple[int, ...], str], int] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        path = "/".join(key.key for key in keys)
        row = re.sub(r"/layers/\d+/", "/layers/*/", path), leaf.shape, starts[path]
        rows[row] = rows.get(row, 0) + 1
    total = sum(count * math.prod(shape) for (_, shape, _), count in rows.items())
    width = max(len(path) for path, *_ in rows)
    heading = f"start ({config.model.initializer})"
    yield f"{'parameter':{width}}  {'shape':>16}  {'times':>5}  {'numbers':>12}  {heading}"
    for (path, shape, start), count in rows.items():
        yield f"{path:{width}}  {'x'.join(map(str, shape)):>16}  {count:5}  {count * math.prod(shape):12,}  {start}"
    yield f"{'total':{width}}  {'':16}  {'':5}  {total:12,}"
    for name, (paper, millions) in PAPER.items():
        if build(paper.with_vocabulary(pieces)).abstract_params == model.abstract_params:
            ours = sum(
                math.prod(x.shape) for x in jax.tree.leaves(build(paper.with_vocabulary(37_000)).abstract_params)
            )
            yield (
                f"the paper's {name} model: {millions}M (Table 3); this one has {total / 1e6:.2f}M with "
                f"{pieces:,} pieces, and {ours / 1e6:.2f}M with {PAPER_VOCABULARY:,}"
            )
