"""Parameter counts of a config, matrix by matrix, and the paper's counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import jax

from transformer.config import BASE, BIG, Config
from transformer.model import build

# Parameters in millions, Table 3 of the paper. Our count with the paper's vocabulary of about 37,000 pieces: 63.05 and
# 214.17.
PAPER = {"base": (BASE, 65), "big": (BIG, 213)}
PAPER_VOCABULARY = 37_000


def describe(config: Config) -> Iterator[str]:
    """Lines of a table: for each kind of parameter its shape, how often it occurs, the count of its numbers, and its
    initialisation; then the total, and the paper's count for a model of the paper."""
    model = build(config.model.with_vocabulary(config.vocab_size))
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
        if build(paper.with_vocabulary(config.vocab_size)).abstract_params == model.abstract_params:
            ours = sum(
                math.prod(x.shape) for x in jax.tree.leaves(build(paper.with_vocabulary(37_000)).abstract_params)
            )
            yield (
                f"the paper's {name} model: {millions}M (Table 3); this one has {total / 1e6:.2f}M with "
                f"{config.vocab_size:,} pieces, and {ours / 1e6:.2f}M with {PAPER_VOCABULARY:,}"
            )
