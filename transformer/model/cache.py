"""State of decoding: the memory of the source, the KV cache of the target, and the attention masks.

Shapes: B sentences, M beams per sentence, T new positions, S memory positions or cache slots.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .attention import KV


class Memory(NamedTuple):
    """The encoder's output in the form that cross-attention reads: keys, values and a mask."""

    kv: tuple[KV, ...]
    """One `KV` per group of decoder layers that share keys and values."""
    mask_BS: Array
    """True at pieces, False at padding."""
    positions_BS: Array
    """Position of each piece in its sentence."""
    segments_BS: Array | None = None
    """With packing: the number of the sentence at each position."""

    def mask_BTS(self, positions_BT: Array, segments_BT: Array | None, window: int | None) -> Array:
        """Source positions that each target position may attend to; `window` as in `within`."""
        mask_BTS = self.mask_BS[:, None, :]
        if segments_BT is not None:
            mask_BTS = mask_BTS & same_segment(segments_BT, self.segments_BS)
        return within(window, mask_BTS, positions_BT, self.positions_BS)


class Cache(NamedTuple):
    """KV cache: keys and values of the target so far, each written once, and a mask of the slots that each beam sees.

    The M beams of a sentence share its slots, which fill up in the order of decoding steps. Reordering beams changes
    only `seen_BMS` (see `reorder`); keys and values stay in place.
    """

    kv: tuple[KV, ...]
    """One `KV` per group of decoder layers that share keys and values."""
    seen_BMS: Array
    """True where the slot holds a piece of this beam's past."""
    positions_BS: Array
    """Position of the piece in each slot."""
    end: Array
    """The first slot that is free in all rows."""

    def extend(self, at_B: Array, T: int, window: int | None = None) -> tuple[Array, Cache]:
        """Reserve slots for T new pieces of each beam, at positions `at_B` to `at_B + T - 1`.

        Returns (mask_BTS, cache). The mask has M * T queries per sentence and marks the slots that each new piece may
        attend to. The returned cache marks the new slots as used; `attention.write` then fills in keys and values.
        """
        B, M, S = self.seen_BMS.shape
        new_S = jnp.arange(S) - self.end  # 0 at the first of the T * M new slots
        at_B1 = at_B.reshape(-1, 1)
        fresh_S = (new_S >= 0) & (new_S < T * M)
        positions_BS = jnp.where(fresh_S, at_B1 + new_S // M, self.positions_BS)
        old_BMS = self.seen_BMS & (self.positions_BS < at_B1)[:, None] & ~fresh_S
        new_MTS = fresh_S & (new_S % M == jnp.arange(M)[:, None, None]) & (new_S // M <= jnp.arange(T)[:, None])
        mask_BMTS = old_BMS[:, :, None] | new_MTS
        extended = Cache(self.kv, mask_BMTS[:, :, -1], positions_BS, self.end + T * M)
        if window is not None:
            query_BT = at_B1 + jnp.arange(T)
            mask_BMTS = mask_BMTS & (query_BT[:, None, :, None] - positions_BS[:, None, None] <= window)
        return mask_BMTS.reshape(B, M * T, S), extended

    def reorder(self, parents_BM: Array) -> Cache:
        """The cache after beam m of sentence b has continued the old beam `parents_BM[b, m]` of this sentence."""
        return self._replace(seen_BMS=jnp.take_along_axis(self.seen_BMS, parents_BM[:, :, None], axis=1))

    def used_B(self) -> Array:
        """Number of slots per sentence that at least one beam sees."""
        return jnp.sum(jnp.any(self.seen_BMS, axis=1), axis=1)

    def collect(self, keep: int, room: int) -> Cache:
        """Garbage collection: drop the slots that no beam sees, and make room for `room` new positions.

        Keeps `keep` slots of each row, which must be at least the maximum of `used_B()`.
        """
        M = self.seen_BMS.shape[1]
        used_BS = jnp.any(self.seen_BMS, axis=1)
        # A stable sort: the used slots come first, in their old order.
        order_BS = jnp.argsort(~used_BS, axis=1, stable=True)[:, :keep]

        def take(x: Array, axis: int) -> Array:
            missing = max(0, keep - order_BS.shape[1])
            x = jax.vmap(lambda row, order: jnp.take(row, order, axis=axis - 1))(x, order_BS)
            return jnp.pad(x, [(0, missing + room * M if i == axis else 0) for i in range(x.ndim)])

        return Cache(
            tuple(KV(take(kv.k_BKHS, 3), take(kv.v_BKSH, 2)) for kv in self.kv),
            take(self.seen_BMS, 2),
            take(self.positions_BS, 1),
            jnp.int32(keep),
        )


def causal(T: int) -> Array:
    """Causal mask_BTS of one row: each of T positions sees itself and all earlier positions."""
    return (jnp.arange(T)[:, None] >= jnp.arange(T))[None]


def same_segment(queries_BT: Array, keys_BS: Array) -> Array:
    """mask_BTS: True where query and key have the same segment number."""
    return queries_BT[:, :, None] == keys_BS[:, None, :]


def within(window: int | None, mask_BTS: Array, queries_BT: Array, keys_BS: Array) -> Array:
    """Restrict the mask to keys at most `window` positions away from the query; None = unchanged."""
    if window is None:
        return mask_BTS
    return mask_BTS & (jnp.abs(queries_BT[:, :, None] - keys_BS[:, None, :]) <= window)
