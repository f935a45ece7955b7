"""The Transformer of the 2017 paper: source pieces in, target log-odds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from transformer.config import ModelConfig, UserError
from transformer.model.attention import KV
from transformer.model.checks import (
    PAD,
    check_ids,
    check_like,
    check_pair,
    check_places,
    check_sizes,
    check_sources,
    value_of,
    whole,
)
from transformer.model.initializers import normal
from transformer.model.layers import Embedding, dropout, fold, sinusoids
from transformer.model.stack import Between, Decoder, Encoder

Head = Callable[[Array, Any], Any]


class Memory(NamedTuple):
    """What the decoder attends to: the encoder's output as keys and values of each decoder layer, with its mask."""

    kv: tuple[KV, ...]
    mask_BS: Array
    """True at pieces, False at padding."""
    positions_BS: Array
    """Where each position stands in its sentence."""
    segments_BS: Array | None = None
    """With packing: the number of the sentence each position belongs to."""


class Cache(NamedTuple):
    """What decoding remembers: keys and values, written once, and who may see them.

    A sentence's M beams share its slots, which are filled in order of time. When the beams are reordered nothing is
    moved but `seen_BMS` (see `reorder`).
    """

    kv: tuple[KV, ...]
    """One for each group of decoder layers that shares one."""
    seen_BMS: Array
    """True where a slot holds a piece of the beam's own past."""
    place_BS: Array
    """The position of the piece in each slot."""
    end: Array
    """The first slot that is free in all rows."""

    def reorder(self, parents_BM: Array) -> Cache:
        """The cache after beam m of sentence b has become a continuation of its beam `parents_BM[b, m]`."""
        return self._replace(seen_BMS=jnp.take_along_axis(self.seen_BMS, parents_BM[:, :, None], axis=1))

    def used_B(self) -> Array:
        """How many slots of each sentence some beam still sees: what its beams have in common counts once."""
        return jnp.sum(jnp.any(self.seen_BMS, axis=1), axis=1)

    def collect(self, keep: int, room: int) -> Cache:
        """The cache without the slots that no beam sees, and with room for so many new positions.

        `keep` is how many slots are kept in each row, at least the greatest of `used_B()`.
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


class EncoderDecoder(nnx.Module):
    """Encoder, decoder, and the tables of embeddings they share.

    The padding piece, id 0, fills up a batch: it is never attended to and never learned from.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) where config or vocabulary break a rule."""
        check_sizes(config, vocab_size)

        def table() -> Embedding:
            return Embedding(vocab_size, config.d_model, rngs=rngs)

        def positions() -> nnx.Param:
            return normal(0.02, rngs, (config.max_positions, config.d_model))

        self.config, self.vocab_size = config, vocab_size
        # One module owns a table and offers both its uses: aliases would split its gradient in two.
        self.embedding = table()
        if config.tied_embeddings != "all":
            self.target_embedding = table()
        if config.tied_embeddings == "none":
            self.output_embedding = table()
        if config.positions == "learned":
            self.source_positions = positions()
            self.target_positions = positions()
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(
        self,
        source_BS: Array,
        target_BT: Array,
        *,
        positions: tuple[Array, Array] | None = None,
        segments: tuple[Array, Array] | None = None,
        key: Array | None = None,
        remat: bool = False,
        head: Head | None = None,
        between: Between = lambda x: x,
    ) -> Any:
        """logits_BTV float32: at position t, for the piece that follows `target_BT[:, :t + 1]`.

        Both are integer ids, padded with 0 on the right; the source ends with eos, the target begins with bos.
        A `key` switches dropout on. Where rows hold several sentences, `segments` number them on either side, the same
        number for source and target of a pair, and `positions` restart in each. With `remat` the gradient keeps only
        what goes from layer to layer, and computes the rest once more. A `head` is given what the logits are made of,
        x_BTD and the table as the parameters have it, and its result takes their place. `between` is applied to x_BTD
        wherever one layer hands it to the next, to say where it lies on a mesh, say.

        Raises `UserError` (a ValueError) for arrays of other types or shapes, and, outside of `jax.jit`, for ids that
        the vocabulary does not have, a target whose source is all padding, and positions that were not learned.
        """
        check_ids("source_BS", source_BS, self.vocab_size)
        check_ids("target_BT", target_BT, self.vocab_size)
        if len(source_BS) != len(target_BT):
            raise UserError(
                f"source_BS has {len(source_BS)} rows and target_BT {len(target_BT)}: give one target for each source"
            )
        places_BS, places_BT = check_pair("positions", positions)
        numbers_BS, numbers_BT = check_pair("segments", segments)
        memory = self.encode(
            source_BS, positions_BS=places_BS, segments_BS=numbers_BS, key=fold(key, 0), remat=remat, between=between
        )
        return self.decode(
            target_BT,
            memory,
            positions_BT=places_BT,
            segments_BT=numbers_BT,
            key=fold(key, 1),
            remat=remat,
            head=head,
            between=between,
        )[0]

    @jax.named_scope("encode")
    def encode(
        self,
        source_BS: Array,
        *,
        positions_BS: Array | None = None,
        segments_BS: Array | None = None,
        key: Array | None = None,
        remat: bool = False,
        between: Between = lambda x: x,
    ) -> Memory:
        """The memory of source_BS. When packed, `segments_BS` numbers sentences and `positions_BS` restarts in each.

        `key`, `remat` and `between` are as in `__call__`, and so is what is checked.
        """
        check_ids("source_BS", source_BS, self.vocab_size)
        for name, given in (("positions_BS", positions_BS), ("segments_BS", segments_BS)):
            if given is not None:
                check_like(name, given, source_BS)
        mask_BS = source_BS != PAD
        mask_BTS = mask_BS[:, None, :]
        if segments_BS is not None:
            mask_BTS = mask_BTS & (segments_BS[:, :, None] == segments_BS[:, None, :])
        if positions_BS is None:
            positions_BS = jnp.arange(source_BS.shape[1])[None]
        mask_BTS = self._within("encoder", mask_BTS, positions_BS, positions_BS)
        table = getattr(self, "source_positions", None)
        if table is not None:
            check_places("source_BS", source_BS, positions_BS, len(table[...]))
        x_BSD = self._inputs(self.embedding, table, source_BS, positions_BS, fold(key, 0))
        x_BSD = self.encoder(between(x_BSD), mask_BTS, fold(key, 1), remat=remat, between=between)
        positions_BS = jnp.broadcast_to(positions_BS, source_BS.shape)
        return Memory(self.decoder.memory(x_BSD), mask_BS, positions_BS, segments_BS)

    @jax.named_scope("decode")
    def decode(
        self,
        tokens_BT: Array,
        memory: Memory,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        cache: Cache | None = None,
        at_B: Array | None = None,
        key: Array | None = None,
        want_weights: bool = False,
        remat: bool = False,
        head: Head | None = None,
        between: Between = lambda x: x,
    ) -> tuple[Any, Cache | None, tuple[Array, ...] | None]:
        """logits_BTV float32 (or what `head` makes), the new cache, and a layer's cross-attention weights_BNTS each if
        wanted. `remat`, `head` and `between` are as in `__call__`.

        Without a cache, tokens_BT are whole targets, beginning with bos. With one (see `init_cache`), the tokens
        stand at positions `at_B`, `at_B + 1`, … and attend to the cached positions before them; `at_B` is one position
        for all, or one for each sentence of the cache. `tokens_BT` may have M times the rows of `memory`, and of the
        cache if that was made for M beams: the M beams of a sentence, side by side.

        Raises `UserError` as `__call__` does, and where the cache has no room for the tokens.
        """
        self._check_decoding(tokens_BT, memory, cache, at_B, positions_BT, segments_BT)
        rows, T = tokens_BT.shape
        beams = 1
        if cache is not None:
            at_B = jnp.int32(0) if at_B is None else jnp.asarray(at_B)
            beams = cache.seen_BMS.shape[1]
            places_BT = at_B[..., None] + jnp.arange(T)
            mask_BTS, seen_BMS, place_BS = self._past(cache, at_B, T)
            positions_BT = places_BT if at_B.ndim == 0 else jnp.repeat(places_BT, beams, axis=0)
            positions_BT = positions_BT.reshape(-1, T)
        else:
            mask_BTS = (jnp.arange(T)[:, None] >= jnp.arange(T))[None]
            if positions_BT is None:
                positions_BT = jnp.arange(T)[None]
            mask_BTS = self._within("decoder", mask_BTS, positions_BT, positions_BT)
        memory_mask_BTS = memory.mask_BS[:, None, :]
        if segments_BT is not None:
            mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
            memory_mask_BTS = memory_mask_BTS & (segments_BT[:, :, None] == memory.segments_BS[:, None, :])
        if self.config.attention("cross").window is not None:
            # M * T queries of each sentence.
            places = jnp.broadcast_to(positions_BT, (rows, T)).reshape(len(memory.mask_BS), -1)
            memory_mask_BTS = self._within("cross", memory_mask_BTS, places, memory.positions_BS)
        embedding = getattr(self, "target_embedding", self.embedding)
        table = getattr(self, "target_positions", None)
        if table is not None:
            check_places("tokens_BT", tokens_BT, positions_BT, len(table[...]))
        x_BTD = self._inputs(embedding, table, tokens_BT, positions_BT, fold(key, 0))
        x_BTD, kv, weights = self.decoder(
            between(x_BTD),
            mask_BTS,
            memory.kv,
            memory_mask_BTS,
            cache=None if cache is None else cache.kv,
            end=None if cache is None else cache.end,
            beams=beams,
            key=fold(key, 1),
            want_weights=want_weights,
            remat=remat,
            between=between,
        )
        output = getattr(self, "output_embedding", embedding)
        logits_BTV = output.logits(x_BTD) if head is None else head(x_BTD, output.table[...])
        if cache is not None:
            cache = Cache(kv, seen_BMS, place_BS, cache.end + T * beams)
        return logits_BTV, cache, weights

    def init_cache(self, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None) -> Cache:
        """An empty cache for `rows` sentences of `beams` hypotheses each, with room for `length` positions; of the
        model's own type, or of `dtype`."""
        for name, number in (("rows", rows), ("length", length), ("beams", beams)):
            whole(name, number, 1)
        c, own = self.config, self.config.attention("decoder")
        S, K, dtype = length * beams, own.kv_heads, jnp.dtype(dtype or c.dtype)
        kv = tuple(
            KV(jnp.zeros((rows, K, c.key_size, S), dtype), jnp.zeros((rows, K, S, c.value_size), dtype))
            for _ in range(0, c.decoder_layers, own.kv_sharing)
        )
        return Cache(kv, jnp.zeros((rows, beams, S), bool), jnp.zeros((rows, S), jnp.int32), jnp.int32(0))

    def _check_decoding(
        self,
        tokens_BT: Array,
        memory: Memory,
        cache: Cache | None,
        at_B: Array | None,
        positions_BT: Array | None,
        segments_BT: Array | None,
    ) -> None:
        """Raise `UserError` for what `decode` can't be given."""
        check_ids("tokens_BT", tokens_BT, self.vocab_size)
        if not isinstance(memory, Memory):
            raise UserError(f"memory is a {type(memory).__name__}: give what `encode` returns")
        check_sources(memory.mask_BS, tokens_BT)
        if (segments_BT is None) != (memory.segments_BS is None):
            raise UserError("segments: give them for source and target, or for neither; else one sentence sees others")
        if cache is None:
            for name, given in (("positions_BT", positions_BT), ("segments_BT", segments_BT)):
                if given is not None:
                    check_like(name, given, tokens_BT)
            return
        if positions_BT is not None or segments_BT is not None:
            raise UserError("with a cache, at_B says where the tokens stand; leave positions_BT and segments_BT out")
        (rows, T), (B, M, S) = tokens_BT.shape, cache.seen_BMS.shape
        if rows != B * M:
            raise UserError(f"tokens_BT has {rows} rows: the cache is for {B} sentences of {M} beams")
        if at_B is not None and jnp.shape(at_B) not in ((), (B,)):
            raise UserError(f"at_B has the shape {jnp.shape(at_B)}: give one position, or one for each sentence, {B}")
        end = value_of(cache.end)
        if end is not None and end + T * M > S:
            raise UserError(f"the cache has room for {S // M} positions and holds {end // M} already: no room for {T}")

    def _past(self, cache: Cache, at: Array, T: int) -> tuple[Array, Array, Array]:
        """Which slots T new pieces of each beam may attend to, as mask_BTS of M * T queries a sentence; and seen_BMS
        and place_BS when they are written."""
        B, M, S = cache.seen_BMS.shape
        new_S = jnp.arange(S) - cache.end  # 0 at the first of the T * M slots to be written
        at_B1 = at.reshape(-1, 1)
        fresh_S = (new_S >= 0) & (new_S < T * M)
        place_BS = jnp.where(fresh_S, at_B1 + new_S // M, cache.place_BS)
        old_BMS = cache.seen_BMS & (cache.place_BS < at_B1)[:, None] & ~fresh_S
        own_MTS = fresh_S & (new_S % M == jnp.arange(M)[:, None, None]) & (new_S // M <= jnp.arange(T)[:, None])
        mask_BMTS = old_BMS[:, :, None] | own_MTS
        seen_BMS = mask_BMTS[:, :, -1]
        window = self.config.attention("decoder").window
        if window is not None:
            query_BT = at_B1 + jnp.arange(T)
            mask_BMTS = mask_BMTS & (query_BT[:, None, :, None] - place_BS[:, None, None] <= window)
        return mask_BMTS.reshape(B, M * T, S), seen_BMS, place_BS

    def _within(self, kind: str, mask_BTS: Array, queries_BT: Array, keys_BS: Array) -> Array:
        """The mask, narrowed to the window of this kind of attention."""
        window = self.config.attention(kind).window
        if window is None:
            return mask_BTS
        return mask_BTS & (jnp.abs(queries_BT[:, :, None] - keys_BS[:, None, :]) <= window)

    def _inputs(
        self, embedding: Embedding, table: nnx.Param | None, tokens_BT: Array, positions_BT: Array, key: Array | None
    ) -> Array:
        """Dropout of the sum of scaled embeddings and positions (paper §3.4, §3.5, §5.4)."""
        x_BTD = embedding.embed(tokens_BT)
        if self.config.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, self.config.d_model)
        elif self.config.positions == "learned":
            x_BTD = x_BTD + table[...][positions_BT]
        return dropout(x_BTD.astype(jnp.dtype(self.config.dtype)), self.config.dropout, key)
