"""State of decoding: the memory of the source, the KV cache of the target, and the attention masks.

Shapes: B sentences, M beams per sentence, T new positions, S memory positions or cache slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..config import ModelConfig, UserError
from .attention import KV
from .checks import (
    INT32_MAX,
    check_float,
    check_held,
    check_ids,
    check_integer,
    check_mask,
    check_places,
    check_same_shape,
    value_of,
)


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
    words_BSD: Array | None = None
    """With `model.hard_attention`: see `hard_attention.words`."""

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
        positions_BS = jnp.where(fresh_S, at_B1 + new_S // M, self.positions_BS).astype(jnp.int32)
        old_BMS = self.seen_BMS & (self.positions_BS < at_B1)[:, None] & ~fresh_S
        new_MTS = fresh_S & (new_S % M == jnp.arange(M)[:, None, None]) & (new_S // M <= jnp.arange(T)[:, None])
        mask_BMTS = old_BMS[:, :, None] | new_MTS
        extended = Cache(self.kv, mask_BMTS[:, :, -1], positions_BS, self.end + T * M)
        if window is not None:
            query_BT = at_B1 + jnp.arange(T)
            mask_BMTS = mask_BMTS & (query_BT[:, None, :, None] - positions_BS[:, None, None] <= window)
        return mask_BMTS.reshape(B, M * T, S), extended

    def reorder(self, parents_BM: Array) -> Cache:
        """The cache after beam m of sentence b has continued the old beam `parents_BM[b, m]` of this sentence.

        Raises `UserError` (a ValueError) unless there is a beam of the cache for each of its beams.
        """
        check_ids("parents_BM", parents_BM, self.seen_BMS.shape[1], "the number of beams")
        if parents_BM.shape != self.seen_BMS.shape[:2]:
            raise UserError(f"parents_BM has the shape {parents_BM.shape}: give {self.seen_BMS.shape[:2]}")
        return self._replace(
            seen_BMS=jnp.take_along_axis(self.seen_BMS, jnp.asarray(parents_BM, jnp.int32)[:, :, None], axis=1)
        )

    def next_B(self) -> Array:
        """The position behind the last piece of each sentence; 0 in an empty cache."""
        return jnp.max(jnp.where(jnp.any(self.seen_BMS, axis=1), self.positions_BS + 1, 0), axis=1)

    def used_B(self) -> Array:
        """Number of slots per sentence that at least one beam sees."""
        return jnp.sum(jnp.any(self.seen_BMS, axis=1), axis=1)

    def collect(self, keep: int, room: int) -> Cache:
        """Garbage collection: drop the slots that no beam sees, and make room for `room` new positions.

        Keeps `keep` slots of each row, which must be at least the maximum of `used_B()`.
        """
        M, S = self.seen_BMS.shape[1:]
        used_BS, kept = jnp.any(self.seen_BMS, axis=1), min(keep, S)

        def gathered(x: Array, axis: int) -> Array:
            # A stable sort: the used slots come first, in their old order.
            order_BS = jnp.argsort(~used_BS, axis=1, stable=True)[:, :kept]
            return jax.vmap(lambda row, order: jnp.take(row, order, axis=axis - 1))(x, order_BS)

        def first(x: Array, axis: int) -> Array:
            return jax.lax.slice_in_dim(x, 0, kept, axis=axis)

        def collected(take: Callable[[Array, int], Array]) -> tuple[tuple[KV, ...], Array, Array]:
            kv = tuple(KV(take(kv.k_BKHS, 3), take(kv.v_BKSH, 2)) for kv in self.kv)
            return kv, take(self.seen_BMS, 2), take(self.positions_BS, 1)

        # Without a gap between used slots, they need not be gathered, which takes much longer than a copy.
        no_gap = jnp.all(used_BS[:, 1:] <= used_BS[:, :-1])
        kv, seen_BMS, positions_BS = jax.lax.cond(no_gap, lambda: collected(first), lambda: collected(gathered))

        def widened(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(0, keep - kept + room * M if i == axis else 0) for i in range(x.ndim)])

        return Cache(
            tuple(KV(widened(kv.k_BKHS, 3), widened(kv.v_BKSH, 2)) for kv in kv),
            widened(seen_BMS, 2),
            widened(positions_BS, 1),
            jnp.int32(keep),
        )


def causal(T: int) -> Array:
    """Causal mask_BTS of one row: each of T positions sees itself and all earlier positions."""
    return (jnp.arange(T)[:, None] >= jnp.arange(T))[None]


def same_segment(queries_BT: Array, keys_BS: Array) -> Array:
    """mask_BTS: True where query and key have the same segment number."""
    return queries_BT[:, :, None] == keys_BS[:, None, :]


def placed(positions_BT: Array | None, segments_BT: Array | None, T: int) -> Array:
    """The given positions; None = counted from 0, in packed rows in each segment anew. Neighbouring tokens with the
    same number are a segment."""
    if positions_BT is not None or segments_BT is None:
        return jnp.arange(T)[None] if positions_BT is None else positions_BT
    begins_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
    return jnp.arange(T) - jax.lax.cummax(jnp.where(begins_BT, jnp.arange(T), 0), axis=1)


def within(window: int | None, mask_BTS: Array, queries_BT: Array, keys_BS: Array) -> Array:
    """Restrict the mask to keys at most `window` positions away from the query; None = unchanged."""
    if window is None:
        return mask_BTS
    # Differences of unsigned integers would wrap.
    queries_BT, keys_BS = jnp.asarray(queries_BT, jnp.int32), jnp.asarray(keys_BS, jnp.int32)
    return mask_BTS & (jnp.abs(queries_BT[:, :, None] - keys_BS[:, None, :]) <= window)


def both_ways(window: int | None, mask_BT: Array, positions_BT: Array, segments_BT: Array | None) -> Array:
    """What each position of an encoder may attend to, mask_BTS: earlier and later ones where `mask_BT` is True, of the
    same segment if given, within `window`."""
    mask_BTS = mask_BT[:, None, :]
    if segments_BT is not None:
        mask_BTS = mask_BTS & same_segment(segments_BT, segments_BT)
    return within(window, mask_BTS, positions_BT, positions_BT)


def past(
    T: int,
    window: int | None,
    positions_BT: Array | None,
    segments_BT: Array | None,
    cache: Cache | None,
    at_B: Array | None,
    mask_BTS: Array | None = None,
) -> tuple[Array, Array, Cache | None]:
    """What T tokens of a decoder may attend to: themselves and the past, within `window` positions.

    Returns (positions_BT, mask_BTS, extended cache). Without a cache, the tokens are whole rows; segments number the
    sequences of packed rows, and a given `mask_BTS` replaces the causal one. With a cache, they have positions `at_B`,
    `at_B + 1`, … (default: behind those in the cache, padding included), see `Cache.extend`.
    """
    if cache is None:
        positions_BT = placed(positions_BT, segments_BT, T)
        mask_BTS = within(window, causal(T) if mask_BTS is None else mask_BTS, positions_BT, positions_BT)
        if segments_BT is not None:
            mask_BTS = mask_BTS & same_segment(segments_BT, segments_BT)
        return positions_BT, mask_BTS, None
    at_B = cache.next_B() if at_B is None else jnp.asarray(at_B)
    mask_BTS, extended = cache.extend(at_B, T, window)
    positions_BT = at_B[..., None] + jnp.arange(T)
    if at_B.ndim:
        positions_BT = jnp.repeat(positions_BT, cache.seen_BMS.shape[1], axis=0)
    return positions_BT.reshape(-1, T), mask_BTS, extended


def empty_cache(config: ModelConfig, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None) -> Cache:
    """An empty cache of a decoder for `rows` sequences with `beams` beams each and `length` positions per beam.

    `dtype`: type of keys and values; None = the model's dtype.
    """
    for name, number in (("rows", rows), ("length", length), ("beams", beams)):
        check_integer(name, number, 1)
    check_integer("rows * beams * length", int(rows) * int(beams) * int(length), 1, INT32_MAX)
    attention, S, dtype = (
        config.attention("decoder"),
        length * beams,
        check_float("dtype", config.dtype if dtype is None else dtype),
    )
    K = attention.kv_heads
    kv = tuple(
        KV(jnp.zeros((rows, K, config.key_size, S), dtype), jnp.zeros((rows, K, S, config.value_size), dtype))
        for _ in range(0, config.decoder_layers, attention.kv_sharing)
    )
    return Cache(kv, jnp.zeros((rows, beams, S), bool), jnp.zeros((rows, S), jnp.int32), jnp.int32(0))


def check_kv(name: str, kvs: tuple[KV, ...], config: ModelConfig, kind: str, rows: int, length: int) -> None:
    """Raise `UserError` unless the keys and values have the shapes of this model's attention of this kind."""
    c, attention = config, config.attention(kind)
    keys, values = (rows, attention.kv_heads, c.key_size, length), (rows, attention.kv_heads, length, c.value_size)
    shapes = [(kv.k_BKHS.shape, kv.v_BKSH.shape) for kv in kvs]
    expected = [(keys, values)] * len(range(0, c.decoder_layers, attention.kv_sharing))
    if shapes != expected:
        raise UserError(
            f"{name} is of another model: it has keys and values of the shapes {shapes}, and this model needs "
            f"{expected}"
        )


def check_cache(
    config: ModelConfig,
    tokens_BT: Array,
    cache: Cache | None,
    at_B: Array | None,
    positions_BT: Array | None,
    segments_BT: Array | None,
    mask_BTS: Array | None = None,
) -> None:
    """Raise `UserError` if a decoder can't take these tokens with this cache, these positions, segments and mask."""
    if mask_BTS is not None:
        check_mask("mask_BTS", mask_BTS, (*tokens_BT.shape, tokens_BT.shape[1]), cache)
    if cache is None:
        if at_B is not None:
            raise UserError("at_B needs a cache (see init_cache); without one, give the tokens' positions_BT")
        for name, given in (("positions_BT", positions_BT), ("segments_BT", segments_BT)):
            if given is not None:
                check_same_shape(name, given, tokens_BT)
        return
    if positions_BT is not None or segments_BT is not None:
        raise UserError("with a cache, at_B gives the tokens' positions; leave out positions_BT and segments_BT")
    if not isinstance(cache, Cache):
        raise UserError(f"cache is a {type(cache).__name__}: give what `init_cache` returns")
    check_kv("cache", cache.kv, config, "decoder", cache.seen_BMS.shape[0], cache.seen_BMS.shape[2])
    check_room(tokens_BT, cache, at_B)


def check_room(tokens_BT: Array, cache: Cache, at_B: Array | None) -> None:
    """Raise `UserError` unless the cache has a row for each row of tokens, and room for them at these positions."""
    (rows, T), (B, M, S) = tokens_BT.shape, cache.seen_BMS.shape
    check_held("the cache", cache.end)
    if rows != B * M:
        raise UserError(f"tokens_BT has {rows} rows: the cache is for {B} sentences of {M} beams")
    end = value_of(cache.end)
    if at_B is not None:
        check_places("at_B", at_B, B)
    elif end:
        raise UserError(
            f"at_B is missing: the cache holds {end // M} positions already, so say where tokens_BT begin; behind "
            "padded prompts, each row has its own place"
        )
    if end is not None and end + T * M > S:
        raise UserError(f"the cache has room for {S // M} positions and holds {end // M} already: no room for {T}")
