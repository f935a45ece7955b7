"""The Transformer of the 2017 paper: source pieces in, target log-odds out."""

from __future__ import annotations

from collections.abc import Sequence
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
    segments_BS: Array | None = None
    """With packing: the number of the sentence each position belongs to."""


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
        table = getattr(self, "source_positions", None)
        x_BSD = self._inputs(self.embedding, table, source_BS, positions_BS, fold(key, 0))
        x_BSD = self.encoder(x_BSD, mask_BTS, fold(key, 1))
        return Memory(self.decoder.memory(x_BSD), mask_BS, segments_BS)

    def decode(
        self,
        tokens_BT: Array,
        memory: Memory,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        cache: Sequence[KV] | None = None,
        at_B: Array | None = None,
        key: Array | None = None,
        want_weights: bool = False,
    ) -> tuple[Array, tuple[KV, ...] | None, tuple[Array, ...] | None]:
        """logits_BTV float32, the new cache, and a layer's cross-attention weights_BNTS each if wanted.

        Without a cache, tokens_BT are whole targets, beginning with bos. With one (see `init_cache`), row b's tokens
        stand at positions `at_B[b]`, `at_B[b] + 1`, … and attend to the cached positions before them. `tokens_BT` may
        have M times the rows of `memory`: M beams a sentence, side by side.
        """
        B, T = tokens_BT.shape
        if cache is not None:
            at_B = jnp.zeros(B, jnp.int32) if at_B is None else at_B
            positions_BT = at_B[:, None] + jnp.arange(T)
            mask_BTS = jnp.arange(cache[0].k_BSKH.shape[1]) <= positions_BT[:, :, None]
        else:
            mask_BTS = (jnp.arange(T)[:, None] >= jnp.arange(T))[None]
            if positions_BT is None:
                positions_BT = jnp.arange(T)[None]
        memory_mask_BTS = memory.mask_BS[:, None, :]
        if segments_BT is not None:
            mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
            memory_mask_BTS = memory_mask_BTS & (segments_BT[:, :, None] == memory.segments_BS[:, None, :])
        embedding = getattr(self, "target_embedding", self.embedding)
        table = getattr(self, "target_positions", None)
        x_BTD = self._inputs(embedding, table, tokens_BT, positions_BT, fold(key, 0))
        x_BTD, cache, weights = self.decoder(
            x_BTD,
            mask_BTS,
            memory.kv,
            memory_mask_BTS,
            cache=cache,
            at_B=at_B,
            key=fold(key, 1),
            want_weights=want_weights,
        )
        return getattr(self, "output_embedding", embedding).logits(x_BTD), cache, weights

    def init_cache(self, rows: int, length: int) -> tuple[KV, ...]:
        """An empty cache for `rows` hypotheses of up to `length` positions."""
        c = self.config
        shape, dtype = (rows, length, c.key_value_heads), jnp.dtype(c.dtype)
        return tuple(
            KV(jnp.zeros((*shape, c.key_size), dtype), jnp.zeros((*shape, c.value_size), dtype))
            for _ in range(c.decoder_layers)
        )

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
