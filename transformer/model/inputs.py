"""Input of a stack: the sum of embeddings and position encodings (paper §3.4, §3.5).

Shapes: B batch, T length, D model, P learned positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ModelConfig
from .initializers import table
from .layers import Embedding, LayerNorm, dropout


def sinusoids(positions_BT: Array, d_model: int) -> Array:
    """Sinusoidal position encodings (paper §3.5): float32 of shape BTD.

    PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / d_model)).
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions_BT.shape, d_model)


def position_table(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Param | None:
    """The table of learned positions, of shape PD; None if `positions` is not 'learned'.

    With the initializer 'scaled', it starts as the paper's encodings (§3.5), in the same proportion to the embeddings.
    There, the way from each position to the next one is the same rotation, so one matrix finds all neighbours: a
    masked language model leaves the plateau of its loss sooner (RESULTS.md).
    """
    if config.positions != "learned":
        return None
    if config.initializer == "scaled":
        P, D = config.max_positions, config.d_model
        scale = 1 if config.embedding_scale else D**-0.5
        return nnx.Param(sinusoids(jnp.arange(P), D + D % 2)[:, :D] * scale, start=f"sinusoids, times {scale:.4g}")
    return table(config, rngs, (config.max_positions, config.d_model), deviation=0.02)


def type_table(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Param | None:
    """The table of token types, one row for each; None if there are none."""
    if not config.token_types:
        return None
    return table(config, rngs, (config.token_types, config.d_model), deviation=0.02)


def type_rows(types: nnx.Param, types_BT: Array | None) -> Array:
    """Rows of the table of token types, float32: x_BTD. None = type 0 everywhere.

    A product with one-hot rows is exact, and its gradient is a product, too: fast, though all positions share few rows.
    """
    if types_BT is None:
        return types[...][None, :1]
    one_hot_BTR = jax.nn.one_hot(types_BT, types.shape[0], dtype=jnp.float32)
    return jnp.einsum("BTR,RD->BTD", one_hot_BTR, types[...], precision="highest")


def input_norm(config: ModelConfig) -> LayerNorm | None:
    """The norm of a stack's input; None without `input_norm`."""
    return LayerNorm(config) if config.input_norm else None


def shifted(config: ModelConfig, positions_BT: Array, rows: int, key: Array | None) -> Array:
    """Shift the positions of each row by a random number from 0 to `position_offset`. Without a key: unchanged."""
    if key is None or not config.position_offset:
        return positions_BT
    return positions_BT + jax.random.randint(key, (rows, 1), 0, config.position_offset + 1, jnp.int32)


def inputs(
    config: ModelConfig,
    embedding: Embedding,
    learned: nnx.Param | None,
    tokens_BT: Array,
    positions_BT: Array,
    key: Array | None,
    *,
    norm: LayerNorm | None,
    more_BTD: Array | None = None,
) -> Array:
    """Sum of embeddings and position encodings, with dropout (paper §5.4) if there is a key: x_BTD in model.dtype.

    `learned`: the table of learned positions, or None. `norm`: applied to the sum, or None. `more_BTD`: further
    vectors, such as those of token types, added to the sum.
    """
    x_BTD = embedding.embed(tokens_BT)
    if more_BTD is not None:
        x_BTD = x_BTD + more_BTD
    if config.positions == "sinusoidal":
        x_BTD = x_BTD + sinusoids(positions_BT, config.d_model)
    elif config.positions == "learned":
        x_BTD = x_BTD + learned[...][jnp.asarray(positions_BT, jnp.int32)]
    if norm is not None:
        x_BTD = norm(x_BTD)
    return dropout(x_BTD.astype(jnp.dtype(config.dtype)), config.dropout, key)
