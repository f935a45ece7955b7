"""Where a model has its attention: parameters matrix by matrix, and how the attention pattern grows with the context.

The accounting is that of lecture notes on GPT-3. Query, key, value-down and value-up are the four matrices of a head.
Value-down and value-up are the value matrix and the head's rows of the output matrix: together they map a vector of the
model to another one, as a single square matrix would, with far fewer numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer.config import KINDS, MASKED_HEADS, Config, ModelConfig
from transformer.model import build
from transformer.tools.describe import vocabulary_size

_NAMES = {"query": "query", "key": "key", "value": "value-down", "output": "value-up"}
_PATHS = {
    "encoder": r"encoder/layers/\d+/self_attention/(\w+)",
    "decoder": r"decoder/layers/\d+/self_attention/(\w+)",
    "cross": r"decoder/layers/\d+/cross_attention/(\w+)",
}
_TITLES = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}


class Matrix(NamedTuple):
    """One of the four matrices of an attention."""

    name: str
    rows: int
    columns: int
    heads: int
    """Number of heads that have their own matrix."""
    blocks: int
    """Number of blocks that have their own matrices."""

    @property
    def of_head(self) -> int:
        return self.rows * self.columns

    @property
    def of_block(self) -> int:
        return self.heads * self.of_head

    @property
    def total(self) -> int:
        return self.blocks * self.of_block


def attention_table(config: Any) -> Iterator[str]:
    """Lines of the tables for the model of a config of any task."""
    model = config.model.with_vocabulary(vocabulary_size(config))
    shapes = parameter_shapes(model)
    for kind in present(model):
        yield from _of_kind(kind, model, shapes)
        yield ""
    yield from _whole(model, shapes)
    data = config.data
    context = data.max_length if isinstance(config, Config) else getattr(data, "context", None)
    context = context or config.train.batch_tokens // data.batch_rows
    for kind in present(model):
        yield ""
        yield from _pattern(kind, model, context)


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter by its path. Allocates nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(build(model).abstract_params)
    return {"/".join(key.key for key in keys): leaf.shape for keys, leaf in leaves}


def present(model: ModelConfig) -> list[str]:
    """The kinds of attention that a model has."""
    there = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    there["cross"] = model.encoder_layers and model.decoder_layers
    return [kind for kind in KINDS if there[kind]]


def matrices(kind: str, shapes: dict[str, tuple[int, ...]]) -> tuple[list[Matrix], int]:
    """The four matrices of a kind of attention, and the number of all its biases."""
    found = [(match[1], shape) for path, shape in shapes.items() if (match := re.fullmatch(_PATHS[kind], path))]
    counts = Counter(found)
    rows = []
    for (name, shape), blocks in counts.items():
        if name in _NAMES:
            # The output matrix is NHD, the others are DNH.
            heads, rows_, columns = shape if name == "output" else (shape[1], shape[0], shape[2])
            rows.append(Matrix(_NAMES[name], rows_, columns, heads, blocks))
    order = list(_NAMES.values())
    biases = sum(math.prod(shape) for name, shape in found if name.endswith("_bias"))
    return sorted(rows, key=lambda row: order.index(row.name)), biases


def pattern(kind: str, queries: int, keys: int, window: int | None) -> int:
    """How many numbers of the pattern of one head are used: a position attends only to itself and earlier ones in the
    decoder's self-attention, and to none farther away than `window`."""
    t = np.arange(queries)
    last = t if kind == "decoder" else np.full(queries, keys - 1)
    first = np.zeros(queries, int)
    if window is not None:
        first, last = np.maximum(t - window, 0), np.minimum(last, t + window)
    return int(np.maximum(last - first + 1, 0).sum())


def _of_kind(kind: str, model: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    rows, biases = matrices(kind, shapes)
    layers = model.encoder_layers if kind == "encoder" else model.decoder_layers
    yield f"{_TITLES[kind]}: {layers} blocks of {model.heads} heads, d_model {model.d_model:,}"
    yield f"{'matrix':12} {'shape':>14} {'a head':>15} {'heads':>6} {'a block':>17} {'blocks':>7} {'all blocks':>19}"
    for row in rows:
        shape = f"{row.rows} x {row.columns}"
        yield (
            f"{row.name:12} {shape:>14} {row.of_head:15,} {row.heads:6} {row.of_block:17,} {row.blocks:7} "
            f"{row.total:19,}"
        )
    sums = [sum(getattr(row, part) for row in rows) for part in ("of_head", "of_block", "total")]
    yield f"{'together':12} {'':14} {sums[0]:15,} {'':6} {sums[1]:17,} {'':7} {sums[2]:19,}"
    if biases:
        yield f"{'biases, apart':59} {'':15} {biases:19,}"
    if model.values == "keys":
        return
    square, factored = model.d_model**2, sum(row.of_head for row in rows if row.name.startswith("value"))
    yield (
        f"value map of a head as one matrix, {model.d_model} x {model.d_model}: {square:,}; value-down and value-up "
        f"have {factored:,}, {square / factored:.3g} times fewer"
    )


def _whole(model: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """The shares of the whole model. The output table counts even if it is the embedding table. An encoder alone has
    further heads, and an output only if it predicts masked pieces."""

    def count(pattern: str) -> int:
        return sum(math.prod(shape) for path, shape in shapes.items() if re.fullmatch(pattern, path))

    output = model.output_size * model.d_model if model.decoder_layers or model.head in MASKED_HEADS else 0
    tied = output and "output_embedding/table" not in shapes
    parts = {
        "attention": count(r".*_attention/(query|key|value|output)"),
        "feed-forward": count(r".*/feed_forward/w[12]"),
        "embedding": count(r"(target_)?embedding/table"),
        **{name: number for name, number in (("heads", count(r"(pooler|\w+_head)/w")), ("output", output)) if number},
    }
    whole, stored = sum(parts.values()), sum(map(math.prod, shapes.values()))
    yield f"{'the whole model':36} {'numbers':>19}   share"
    for name, number in parts.items():
        shared = " (the embedding's numbers)" if name == "output" and tied else ""
        yield f"{name + shared:36} {number:19,} {number / whole:7.2%}"
    yield f"{'all matrices':36} {whole:19,} {1:7.2%}"
    once = output if tied else 0
    if once:
        yield f"{'output, stored once':36} {-once:19,}"
    rest = "biases, norms, positions, types" if model.token_types else "biases, norms and learned positions"
    yield f"{rest:36} {stored - whole + once:19,}"
    yield f"{'parameters':36} {stored:19,}"


def _pattern(kind: str, model: ModelConfig, context: int) -> Iterator[str]:
    layers = model.encoder_layers if kind == "encoder" else model.decoder_layers
    window = model.attention(kind).window
    limit = "" if window is None else f", window {window}"
    yield f"pattern of {_TITLES[kind]}{limit}: twice the context, four times the numbers"
    yield f"{'context':>9} {'a head':>15} {'of these used':>15} {'a block':>19} {'all blocks':>23}"
    for length in (context // 4, context // 2, context, 2 * context, 4 * context):
        square = length**2
        yield (
            f"{length:9,} {square:15,} {pattern(kind, length, length, window):15,} {model.heads * square:19,} "
            f"{layers * model.heads * square:23,}"
        )
