"""Hard attention: the decoder's input holds the encoder's state of the next word (Aharoni and Goldberg 2017).

Where outputs follow the order of the words, as the symbols of a tree do, the model then need not count how many words
it has passed.

Shapes: B sentences, M beams, S source length, T target length, D model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from ..config import ModelConfig, UserError
from .checks import check_mask, check_same_shape, value_of


def words(
    config: ModelConfig, x_BSD: Array, begins_BS: Array | None, mask_BS: Array, segments_BS: Array | None
) -> Array | None:
    """The state of the first piece of each word, one after the other, and behind them that of the last piece:
    words_BSD. None without `model.hard_attention`.

    `begins_BS`: True at the first piece of each word. `mask_BS`: False at padding.
    """
    if not _wanted(config, "begins_BS", begins_BS, "where each word begins, True at its first piece"):
        return None
    check_mask("begins_BS", begins_BS, mask_BS.shape)
    if segments_BS is not None:
        raise UserError("segments are given: with model.hard_attention, each row holds one sentence")
    at_S = jnp.arange(mask_BS.shape[1])
    begun_BS = jnp.cumsum(begins_BS & mask_BS, axis=1)
    # Word n, counted from 0, begins behind the last place where at most n words have begun.
    place_BS = (begun_BS[:, None, :] <= at_S[:, None]).sum(2)
    last_B1 = jnp.max(jnp.where(mask_BS, at_S, -1), axis=1, keepdims=True)
    return _taken(x_BSD, jnp.minimum(place_BS, last_B1))


def next_word(config: ModelConfig, words_BSD: Array | None, tokens_BT: Array, passed_BT: Array | None) -> Array | None:
    """The state of the word that follows the first `passed_BT` words, at each position: x_BTD. None without
    `model.hard_attention`. There may be M rows of tokens for each sentence, one for each beam."""
    if config.hard_attention == (words_BSD is None):
        kind = "without" if words_BSD is None else "with"
        raise UserError(f"memory is of a model {kind} hard_attention: give what `encode` of this model returns")
    if not _wanted(config, "passed_BT", passed_BT, "how many words the target has passed at each position"):
        return None
    check_same_shape("passed_BT", passed_BT, tokens_BT)
    if (known := value_of(passed_BT)) is not None and known.size and known.min() < 0:
        raise UserError(f"passed_BT holds {known.min()}: numbers of words are at least 0")
    rows, S, D = words_BSD.shape
    passed_BT = jnp.broadcast_to(passed_BT, tokens_BT.shape).reshape(rows, -1)
    return _taken(words_BSD, jnp.minimum(passed_BT, S - 1)).reshape(*tokens_BT.shape, D)


def _wanted(config: ModelConfig, name: str, given: Array | None, meaning: str) -> bool:
    """Whether the model has hard attention. Raises `UserError` if the argument is missing then, or given else."""
    if config.hard_attention and given is None:
        raise UserError(f"{name} is missing: model.hard_attention needs {meaning}; `__call__` takes it in `words`")
    if not config.hard_attention and given is not None:
        raise UserError(f"{name} is given, but model.hard_attention is False: leave it out")
    return config.hard_attention


def _taken(x_BSD: Array, places_BT: Array) -> Array:
    """Rows of x. A product with one-hot rows is exact, and its gradient is a product, too."""
    one_hot_BTS = jax.nn.one_hot(places_BT, x_BSD.shape[1], dtype=x_BSD.dtype)
    return jnp.einsum("BTS,BSD->BTD", one_hot_BTS, x_BSD, precision="highest")
