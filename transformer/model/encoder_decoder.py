"""The Transformer of the 2017 paper: source pieces in, target log-odds out."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from transformer.config import ModelConfig
from transformer.model.attention import KV
from transformer.model.layers import Embedding, dropout, fold, sinusoids
from transformer.model.stack import Decoder, Encoder

PAD = 0  # the piece that fills up a batch: never attended to, never learned from


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
    """What decoding remembers: keys and values, written once and never moved, and who may see them.

    A sentence's M beams share its slots; position p of beam m is written to slot p * M + m. When the beams are
    reordered only `seen_BMS` is (see `reorder`).
    """

    kv: tuple[KV, ...]
    """One for each group of decoder layers that shares one."""
    seen_BMS: Array
    """True where a slot holds a piece of the beam's own past."""

    def reorder(self, parents_BM: Array) -> Cache:
        """The cache after beam m of sentence b has become a continuation of its beam `parents_BM[b, m]`."""
        return self._replace(seen_BMS=jnp.take_along_axis(self.seen_BMS, parents_BM[:, :, None], axis=1))

    def grow(self, positions: int) -> Cache:
        """The cache with room for so many positions in all."""
        M = self.seen_BMS.shape[1]
        more = positions * M - self.seen_BMS.shape[2]

        def pad(x: Array, axis: int) -> Array:
            return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

        return Cache(tuple(KV(pad(kv.k_BKHS, 3), pad(kv.v_BKSH, 2)) for kv in self.kv), pad(self.seen_BMS, 2))


class EncoderDecoder(nnx.Module):
    """Encoder, decoder, and the tables of embeddings they share."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        def table() -> Embedding:
            return Embedding(vocab_size, config.d_model, rngs=rngs)

        def positions() -> Array:
            return jax.random.normal(rngs.params(), (config.max_positions, config.d_model)) * 0.02

        self.config = config
        # One module owns a table and offers both its uses: aliases would split its gradient in two.
        self.embedding = table()
        if config.tied_embeddings != "all":
            self.target_embedding = table()
        if config.tied_embeddings == "none":
            self.output_embedding = table()
        if config.positions == "learned":
            self.source_positions = nnx.Param(positions())
            self.target_positions = nnx.Param(positions())
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(self, source_BS: Array, target_BT: Array, *, key: Array | None = None) -> Array:
        """logits_BTV float32: at position t, for the piece that follows `target_BT[:, :t + 1]`.

        Both are integer ids, padded with 0 on the right; the source ends with eos, the target begins with bos.
        A `key` switches dropout on.
        """
        memory = self.encode(source_BS, key=fold(key, 0))
        return self.decode(target_BT, memory, key=fold(key, 1))[0]

    def encode(
        self,
        source_BS: Array,
        *,
        positions_BS: Array | None = None,
        segments_BS: Array | None = None,
        key: Array | None = None,
    ) -> Memory:
        """The memory of source_BS. When packed, `segments_BS` numbers sentences and `positions_BS` restarts in each."""
        mask_BS = source_BS != PAD
        mask_BTS = mask_BS[:, None, :]
        if segments_BS is not None:
            mask_BTS = mask_BTS & (segments_BS[:, :, None] == segments_BS[:, None, :])
        if positions_BS is None:
            positions_BS = jnp.arange(source_BS.shape[1])[None]
        mask_BTS = self._within("encoder", mask_BTS, positions_BS, positions_BS)
        table = getattr(self, "source_positions", None)
        x_BSD = self._inputs(self.embedding, table, source_BS, positions_BS, fold(key, 0))
        x_BSD = self.encoder(x_BSD, mask_BTS, fold(key, 1))
        positions_BS = jnp.broadcast_to(positions_BS, source_BS.shape)
        return Memory(self.decoder.memory(x_BSD), mask_BS, positions_BS, segments_BS)

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
    ) -> tuple[Array, Cache | None, tuple[Array, ...] | None]:
        """logits_BTV float32, the new cache, and a layer's cross-attention weights_BNTS each if wanted.

        Without a cache, tokens_BT are whole targets, beginning with bos. With one (see `init_cache`), the tokens
        stand at positions `at_B`, `at_B + 1`, … and attend to the cached positions before them; `at_B` is one position
        for all, or one for each sentence of the cache. `tokens_BT` may have M times the rows of `memory`, and of the
        cache if that was made for M beams: the M beams of a sentence, side by side.
        """
        rows, T = tokens_BT.shape
        beams = 1
        if cache is not None:
            at_B = jnp.int32(0) if at_B is None else jnp.asarray(at_B)
            beams = cache.seen_BMS.shape[1]
            places_BT = at_B[..., None] + jnp.arange(T)
            mask_BTS, seen_BMS = self._past(cache, at_B, T)
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
        x_BTD = self._inputs(embedding, table, tokens_BT, positions_BT, fold(key, 0))
        x_BTD, kv, weights = self.decoder(
            x_BTD,
            mask_BTS,
            memory.kv,
            memory_mask_BTS,
            cache=None if cache is None else cache.kv,
            at=at_B,
            beams=beams,
            key=fold(key, 1),
            want_weights=want_weights,
        )
        logits_BTV = getattr(self, "output_embedding", embedding).logits(x_BTD)
        return logits_BTV, None if cache is None else Cache(kv, seen_BMS), weights

    def init_cache(self, rows: int, length: int, beams: int = 1) -> Cache:
        """An empty cache for `rows` sentences of `beams` hypotheses each, of up to `length` positions."""
        c, own = self.config, self.config.attention("decoder")
        S, K, dtype = length * beams, own.kv_heads, jnp.dtype(c.dtype)
        kv = tuple(
            KV(jnp.zeros((rows, K, c.key_size, S), dtype), jnp.zeros((rows, K, S, c.value_size), dtype))
            for _ in range(0, c.decoder_layers, own.kv_sharing)
        )
        return Cache(kv, jnp.zeros((rows, beams, S), bool))

    def _past(self, cache: Cache, at: Array, T: int) -> tuple[Array, Array]:
        """Which slots T new pieces of each beam may attend to, as mask_BTS of M * T queries a sentence, and seen_BMS
        when they are written."""
        B, M, S = cache.seen_BMS.shape
        slot_S = jnp.arange(S)
        place_S = slot_S // M
        at_B1TS = at.reshape(-1, 1, 1, 1)
        own_MTS = (slot_S % M == jnp.arange(M)[:, None])[:, None]
        query_BMTS = at_B1TS + jnp.arange(T)[:, None]
        old = cache.seen_BMS[:, :, None] & (place_S < at_B1TS)
        mask_BMTS = old | (own_MTS & (place_S >= at_B1TS) & (place_S <= query_BMTS))
        seen_BMS = mask_BMTS[:, :, -1]
        window = self.config.attention("decoder").window
        if window is not None:
            mask_BMTS = mask_BMTS & (query_BMTS - place_S <= window)
        return mask_BMTS.reshape(B, M * T, S), seen_BMS

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
