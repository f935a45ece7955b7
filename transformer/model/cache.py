"""What decoding keeps: the memory of the source, the cache of the target, and who may attend to what.

Shapes: B sentences, M beams of each, T new positions, S memory positions or cache slots.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer.model.attention import KV


class Memory(NamedTuple):
    """The encoder's output as cross-attention reads it: keys, values and a mask."""

    kv: tuple[KV, ...]
    """One for each group of decoder layers that shares keys and values."""
    mask_BS: Array
    """True at pieces, False at padding."""
    positions_BS: Array
    """Position of each piece in its sentence."""
    segments_BS: Array | None = None
    """With packing: number of the sentence that each position belongs to."""

    def mask_BTS(self, positions_BT: Array, segments_BT: Array | None, window: int | None) -> Array:
        """Which source positions the target's positions may attend to."""
        mask_BTS = self.mask_BS[:, None, :]
        if segments_BT is not None:
            mask_BTS = mask_BTS & same_segment(segments_BT, self.segments_BS)
        return within(window, mask_BTS, positions_BT, self.positions_BS)


class Cache(NamedTuple):
    """Keys and values of the target so far, written once, with a mask of who may see them.

    A sentence's M beams share its slots, which are filled in order of time. A reordering of beams moves `seen_BMS`
    alone (see `reorder`).
    """

    kv: tuple[KV, ...]
    """One for each group of decoder layers that shares keys and values."""
    seen_BMS: Array
    """True where a slot holds a piece of the beam's own past."""
    place_BS: Array
    """Position of the piece in each slot."""
    end: Array
    """The first slot that is free in all rows."""

    def extend(self, at_B: Array, T: int, window: int | None = None) -> tuple[Array, Cache]:
        """The slots that T new pieces of each beam may attend to, and the cache with these pieces marked as written.

        The pieces stand at positions `at_B` to `at_B + T - 1`, and see the positions before them. Returns mask_BTS,
        with M * T queries a sentence. `attention.write` adds their keys and values.
        """
        B, M, S = self.seen_BMS.shape
        new_S = jnp.arange(S) - self.end  # 0 at the first of the T * M slots to be written
        at_B1 = at_B.reshape(-1, 1)
        fresh_S = (new_S >= 0) & (new_S < T * M)
        place_BS = jnp.where(fresh_S, at_B1 + new_S // M, self.place_BS)
        old_BMS = self.seen_BMS & (self.place_BS < at_B1)[:, None] & ~fresh_S
        own_MTS = fresh_S & (new_S % M == jnp.arange(M)[:, None, None]) & (new_S // M <= jnp.arange(T)[:, None])
        mask_BMTS = old_BMS[:, :, None] | own_MTS
        extended = Cache(self.kv, mask_BMTS[:, :, -1], place_BS, self.end + T * M)
        if window is not None:
            query_BT = at_B1 + jnp.arange(T)
            mask_BMTS = mask_BMTS & (query_BT[:, None, :, None] - place_BS[:, None, None] <= window)
        return mask_BMTS.reshape(B, M * T, S), extended

    def reorder(self, parents_BM: Array) -> Cache:
        """The cache after beam m of sentence b has become a continuation of its beam `parents_BM[b, m]`."""
        return self._replace(seen_BMS=jnp.take_along_axis(self.seen_BMS, parents_BM[:, :, None], axis=1))

    def used_B(self) -> Array:
        """The number of slots of each sentence that at least one beam sees."""
        return jnp.sum(jnp.any(self.seen_BMS, axis=1), axis=1)

    def collect(self, keep: int, room: int) -> Cache:
        """The cache without the slots that no beam sees, and with room for so many new positions.

        Keeps `keep` slots of each row: at least the greatest of `used_B()`.
        """
        M = self.seen_BMS.shape[1]
        used_BS = jnp.any(self.seen_BMS, axis=1)
        # Stable: those in use come first, in their old order.
        order_BS = jnp.argsort(~used_BS, axis=1, stable=True)[:, :keep]

        def take(x: Array, axis: int) -> Array:
            missing = max(0, keep - order_BS.shape[1])
            x = jax.vmap(lambda row, order: jnp.take(row, order, axis=axis - 1))(x, order_BS)
            return jnp.pad(x, [(0, missing + room * M if i == axis else 0) for i in range(x.ndim)])

        return Cache(
            tuple(KV(take(kv.k_BKHS, 3), take(kv.v_BKSH, 2)) for kv in self.kv),
            take(self.seen_BMS, 2),
            take(self.place_BS, 1),
            jnp.int32(keep),
        )


def causal(T: int) -> Array:
    """mask_BTS of one row: each of T positions sees itself and those before it."""
    return (jnp.arange(T)[:, None] >= jnp.arange(T))[None]


def same_segment(queries_BT: Array, keys_BS: Array) -> Array:
    """mask_BTS: True where query and key have the same segment number."""
    return queries_BT[:, :, None] == keys_BS[:, None, :]


def within(window: int | None, mask_BTS: Array, queries_BT: Array, keys_BS: Array) -> Array:
    """The mask, narrowed to keys at most `window` positions from the query; None = unchanged."""
    if window is None:
        return mask_BTS
    return mask_BTS & (jnp.abs(queries_BT[:, :, None] - keys_BS[:, None, :]) <= window)
