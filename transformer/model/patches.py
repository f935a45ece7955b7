"""Patches of bytes: where they begin, the largest number in a row, and hashes of n-grams.

Whether a patch begins at a byte depends on the bytes before it alone. All functions work on whole rows, and on the next
bytes of rows that have been read before.

Shapes: B rows, T bytes, V vocabulary, L the n-grams' largest length - 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array

from ..config import NgramConfig, PatchConfig

_UNITS = 1_000  # lengths are counted in thousandths of a byte, so that whole numbers divide


def entropies(logits_BTV: Array) -> Array:
    """The entropy of each distribution, in nats: (B, T)."""
    log_probs_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.sum(jnp.exp(log_probs_BTV) * log_probs_BTV, axis=-1)


def ended(
    config: PatchConfig, entropy_BT: Array | None, positions_BT: Array, threshold: Array | float, before_B: Array
) -> Array:
    """The number of patches that have ended with each byte: done_BT, int32.

    A patch ends with a byte if another begins with the next one. `entropy_BT`: that of the byte after each; None if
    patches are equally long. `before_B`: the number of patches that ended before the first of these bytes.

    Let want_t be 1 where the next byte is hard to predict, and room_t the most patches that may have ended with byte t.
    Then done_t = min(done_{t-1} + want_t, room_t), which a sum and a running maximum compute at once.
    """
    if entropy_BT is None:
        return 1 + positions_BT * _UNITS // round(config.bytes * _UNITS)
    wanted_BT = (entropy_BT > threshold) | (positions_BT == 0)
    sums_BT = before_B[:, None] + jnp.cumsum(wanted_BT, axis=1, dtype=jnp.int32)
    room_BT = 1 + config.spare + positions_BT * _UNITS // _of_one(config)
    return sums_BT - jnp.maximum(jax.lax.cummax(sums_BT - room_BT, axis=1), 0)


def most(config: PatchConfig, length: int) -> int:
    """The most patches that can have ended in a row of this many bytes."""
    if config.by == "static":
        return 1 + (length - 1) * _UNITS // round(config.bytes * _UNITS)
    return min(length, 1 + config.spare + (length - 1) * _UNITS // _of_one(config))


def _of_one(config: PatchConfig) -> int:
    """The length for which a row has room for one patch more, in thousandths of a byte."""
    return max(1, round(config.bytes / config.room * _UNITS))


def running_max(x_BTD: Array, number_BT: Array) -> Array:
    """The maximum over the bytes of each patch so far, the byte itself included. `number_BT`: that of its patch."""
    reach, T = 1, x_BTD.shape[1]
    while reach < T:  # each x_t is the maximum over the last `reach` bytes of the patch
        same_BT = jnp.pad(number_BT[:, reach:] == number_BT[:, :-reach], ((0, 0), (reach, 0)))
        before_BTD = jnp.pad(x_BTD[:, :-reach], ((0, 0), (reach, 0), (0, 0)))
        x_BTD = jnp.where(same_BT[..., None], jnp.maximum(x_BTD, before_BTD), x_BTD)
        reach *= 2
    return x_BTD


def ngrams(config: NgramConfig, earlier_BL: Array, tokens_BT: Array) -> Iterator[Array]:
    """For each length, the row of the n-gram that ends with each byte in a table of all n-grams: (B, T).

    `earlier_BL`: the ids before the first of these bytes, 0 where there are none.
    """
    T, shift = tokens_BT.shape[1], config.longest - 1
    ids_BT = jnp.concatenate([earlier_BL, tokens_BT], axis=1).astype(jnp.uint32)
    hashed = jnp.zeros(tokens_BT.shape, jnp.uint32)
    for n in range(1, config.longest + 1):
        begin = shift + 1 - n
        hashed = hashed * jnp.uint32(0x9E3779B1) + ids_BT[:, begin : begin + T] + 1
        if n >= config.shortest:
            mixed = (hashed ^ (hashed >> 15)) * jnp.uint32(0x85EBCA6B)
            row = (mixed ^ (mixed >> 13)) % jnp.uint32(config.rows)
            yield row.astype(jnp.int32) + (n - config.shortest) * config.rows
