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
from .checks import check_mask, check_same_shape


def words(
    config: ModelConfig, x_BSD: Array, begins_BS: Array | None, mask_BS: Array, segments_BS: Array | None
) -> Array | None:
    """The state of the first piece of each word, one after the other, and behind them that of the last piece:
    words_BSD. None without `model.hard_attention`.

    `begins_BS`: True at the first piece of each word. `mask_BS`: False at padding.
    """
    if not config.hard_attention:
        if begins_BS is not None:
            raise UserError("begins_BS is given, but model.hard_attention is false: leave it out")
        return None
    if begins_BS is None:
        raise UserError("begins_BS is missing: with model.hard_attention, give True at the first piece of each word")
    check_mask("begins_BS", begins_BS, mask_BS.shape)
    if segments_BS is not None:
        raise UserError("segments are given: with model.hard_attention, each row holds one sentence")
    begun_BS = jnp.cumsum(begins_BS & mask_BS, axis=1)
    # The place of word n is the number of pieces before it: those up to which at most n words have begun.
    place_BS = ((begun_BS[:, None, :] <= jnp.arange(begun_BS.shape[1])[:, None]) & mask_BS[:, None, :]).sum(2)
    return _taken(x_BSD, jnp.minimum(place_BS, mask_BS.sum(1, keepdims=True) - 1))


def next_word(words_BSD: Array | None, tokens_BT: Array, read_BT: Array | None) -> Array | None:
    """The state of the word that follows the first `read_BT` words, at each position: x_BTD. None without
    `words_BSD`. There may be M rows of tokens for each sentence, one for each beam."""
    if words_BSD is None:
        if read_BT is not None:
            raise UserError("read_BT is given, but model.hard_attention is false: leave it out")
        return None
    if read_BT is None:
        raise UserError("read_BT is missing: with model.hard_attention, give the number of words before each position")
    check_same_shape("read_BT", read_BT, tokens_BT)
    rows, S, D = words_BSD.shape
    x_BTD = _taken(words_BSD, jnp.clip(read_BT.reshape(rows, -1), 0, S - 1))
    return x_BTD.reshape(*tokens_BT.shape, D)


def _taken(x_BSD: Array, places_BT: Array) -> Array:
    """Rows of x. A product with one-hot rows is exact, and its gradient is a product, too."""
    one_hot_BTS = jax.nn.one_hot(places_BT, x_BSD.shape[1], dtype=x_BSD.dtype)
    return jnp.einsum("BTS,BSD->BTD", one_hot_BTS, x_BSD, precision="highest")
