"""The Byte Latent Transformer (Pagnoni et al. 2024, arXiv 2412.09871): a language model of bytes in patches.

A local encoder reads bytes; each patch becomes one vector, which a latent Transformer reads; a local decoder predicts
bytes. Byte i is predicted with the latent of the patch before its own. That patch ends with byte i - 1 at the latest.

Shapes: B rows, T bytes, P patches, D width of bytes, W ways = width of patches / D, Q = P * W queries of patches,
M beams, S slots of the cache; X = B * M rows with T new bytes, in the cache's order Y = M * T queries of each row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ByteLatentModel, UserError
from .attention import KV, Attention, write
from .byte_cache import Earlier, Parts, Seen, empty_byte_cache, parts_of
from .cache import Cache, causal, past, within
from .checks import check_complete, check_ids, check_length, check_positions, check_width
from .decoder import Decoder
from .initializers import constant, distributions
from .inputs import input_norm, inputs, position_table
from .layers import Dense, Embedding, fold
from .patches import ended, entropies, most, ngrams, running_max
from .stack import RUN, Kind, Run, Stack, SublayerNorm, check_run


class ByteLatent(nnx.Module):
    """Local encoder, latent Transformer and local decoder, and the byte model whose entropies cut patches."""

    def __init__(self, config: ByteLatentModel, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) if the config breaks a rule or its vocab_size is None."""
        check_complete(config)
        c, n = config, config.ngrams
        self.config, self.vocab_size, self.ways = c, c.vocab_size, c.latent.d_model // c.d_model
        self.embedding = Embedding(c, rngs=rngs)
        self.output_embedding = Embedding(c, rngs=rngs) if c.tied_embeddings == "none" else None
        rows = (n.longest - n.shortest + 1) * n.rows
        self.ngram_embedding = Embedding(c, rows, rngs=rngs) if rows else None
        self.positions = position_table(c, rngs=rngs)
        self.input_norm = input_norm(c)
        self.encoder = Stack(c, "encoder", rngs=rngs)
        self.pooler = Dense(c, c.latent.d_model, rngs=rngs)
        start = distributions(c.initializer, 1)
        self.pooling_attention = Attention(c, "cross", start=start, rngs=rngs)
        self.pooling_norm = SublayerNorm(c)
        self.latent = Stack(c.latent, "decoder", rngs=rngs)
        self.decoder = Stack(c, "decoder", cross=True, rngs=rngs)
        self.output_bias = constant(0, c.vocab_size) if c.output_bias else None
        vocabulary = c.entropy.with_vocabulary(c.vocab_size)
        self.entropy = Decoder(vocabulary, rngs=rngs) if c.patches.by == "entropy" else None

    def __call__(self, tokens_BT: Array, *, key: Array | None = None, run: Run = RUN) -> Array:
        """Return logits_BTV, float32: at position t, logits of the byte that follows `tokens_BT[:, :t + 1]`.

        A `key` switches dropout on. Raises `UserError` (a ValueError) for wrong types or shapes.
        """
        return self.decode(tokens_BT, key=key, run=run)[0]

    def decode(self, tokens_BT: Array, memory: None = None, **options: Any) -> tuple[Array, Cache | None, None]:
        """Return logits_BTV (float32), the new cache and None: `hidden` with its options, then `logits`."""
        x_BTD, cache, _ = self.hidden(tokens_BT, memory, **options)
        return self.logits(x_BTD), cache, None

    @jax.named_scope("decode")
    def hidden(
        self,
        tokens_BT: Array,
        memory: None = None,
        *,
        cache: Cache | None = None,
        at_B: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> tuple[Array, Cache | None, None]:
        """Return x_BTD for `logits`, the new cache, and None. Arguments are those of `Decoder.hidden`."""
        check_run(run, key)
        check_ids("tokens_BT", tokens_BT, self.vocab_size)
        if memory is not None:
            raise UserError(f"memory is a {type(memory).__name__}: this model has none; leave it out")
        if cache is not None:
            if key is not None:
                raise UserError("key: this model has no dropout with a cache; leave one of the two out")
            return *self._cached(tokens_BT, cache, at_B), None
        if at_B is not None:
            raise UserError("at_B needs a cache (see init_cache)")
        rows, T = tokens_BT.shape
        if self.positions is not None:
            check_length("tokens_BT", T, len(self.positions[...]))
        tokens_BT, positions_BT = jnp.asarray(tokens_BT, jnp.int32), jnp.arange(T)[None]
        number_BT, ended_BT = self.patches(tokens_BT)
        earlier_BL = jnp.zeros((rows, self.config.ngrams.longest - 1), tokens_BT.dtype)
        x_BTD = self._read(tokens_BT, earlier_BL, positions_BT, fold(key, 0))
        mask_BTS = within(self.config.attention("encoder").window, causal(T), positions_BT, positions_BT)
        x_BTD, _, _ = self.encoder(x_BTD, mask_BTS, positions_BT, key=fold(key, 1), run=run)

        # A vector for each patch. Those that do not end in the row are never read.
        patches_P = jnp.arange(most(self.config.patches, T))
        inside_BPT = number_BT[:, None] == patches_P[:, None]
        last_BP = jnp.argmax(inside_BPT & (ended_BT > number_BT)[:, None], axis=2)
        largest_BPD = jnp.take_along_axis(running_max(x_BTD, number_BT), last_BP[..., None], axis=1)
        kv = self.pooling_attention.kv(self.pooling_norm.enter(x_BTD))
        patch_BPE = self._pooled(largest_BPD, kv, inside_BPT, fold(key, 2))
        patch_BPE, _, _ = self.latent(patch_BPE, causal(len(patches_P)), patches_P[None], key=fold(key, 3), run=run)

        memory = self.decoder.memory(patch_BPE.reshape(rows, -1, self.config.d_model))
        mask_BTP = ended_BT[..., None] - 1 == patches_P
        mask_BTS = within(self.config.attention("decoder").window, causal(T), positions_BT, positions_BT)
        given = {"memory": memory, "memory_mask_BTS": jnp.repeat(mask_BTP, self.ways, axis=2)}
        x_BTD, _, _ = self.decoder(x_BTD, mask_BTS, positions_BT, **given, key=fold(key, 4), run=run)
        return x_BTD, None, None

    def patches(self, tokens_BT: Array) -> tuple[Array, Array]:
        """The number of the patch of each byte, from 0, and the number of patches that have ended with it: (B, T).

        Raises `UserError` for ids that are no bytes or of a wrong shape.
        """
        check_ids("tokens_BT", tokens_BT, self.vocab_size)
        rows, T = tokens_BT.shape
        entropy_BT = None if self.entropy is None else self.entropies(tokens_BT)
        ended_BT = self._ended(entropy_BT, jnp.arange(T)[None], jnp.zeros(rows, jnp.int32))
        ended_BT = jnp.broadcast_to(ended_BT, tokens_BT.shape)
        return jnp.pad(ended_BT[:, :-1], ((0, 0), (1, 0))), ended_BT

    def entropies(self, tokens_BT: Array) -> Array:
        """The entropy of the byte that follows each, in nats, given the bytes so far: (B, T)."""
        return jax.lax.stop_gradient(entropies(self.entropy(tokens_BT)))

    def _ended(self, entropy_BT: Array | None, positions_BT: Array, before_B: Array) -> Array:
        patches = self.config.patches
        if entropy_BT is not None and patches.threshold is None:
            raise UserError("model.patches.threshold = None: give the entropy, in nats, above which a patch begins")
        return ended(patches, entropy_BT, positions_BT, patches.threshold, before_B)

    def _read(self, tokens_BT: Array, earlier_BL: Array, positions_BT: Array, key: Array | None) -> Array:
        """The mean of the embeddings of each byte and of the n-grams that end with it: x_BTD. Where a norm follows,
        their sum."""
        if self.positions is not None:
            check_positions("tokens_BT", tokens_BT, positions_BT, len(self.positions[...]))
        n = self.config.ngrams if self.ngram_embedding is not None else None
        found = [] if n is None else [self.ngram_embedding.embed(row) for row in ngrams(n, earlier_BL, tokens_BT)]
        given = {"norm": self.input_norm, "more_BTD": sum(found) if found else None}
        x_BTD = inputs(self.config, self.embedding, self.positions, tokens_BT, positions_BT, key, **given)
        return x_BTD / (1 + len(found)) if self.input_norm is None else x_BTD

    def _pooled(self, largest_BPD: Array, kv: KV, inside_BPT: Array, key: Array | None) -> Array:
        """A vector for each patch: W queries, made of the maximum over its bytes, attend to its bytes; x_BPE with
        E = D * W. The beams of a sentence share its `kv`, as in `Attention`."""
        rows, P, D = largest_BPD.shape
        query_BQD = self.pooler(largest_BPD).astype(largest_BPD.dtype).reshape(rows, P * self.ways, D)
        mask_BQT = jnp.repeat(inside_BPT, self.ways, axis=1)
        y_BQD, _ = self.pooling_attention(self.pooling_norm.enter(query_BQD), kv, mask_BQT, key=fold(key, 1))
        return self.pooling_norm.leave(query_BQD, y_BQD, fold(key, 0)).reshape(rows, P, -1)

    # ---- With a cache -----------------------------------------------------------------------------------------------

    def _cached(self, tokens_XT: Array, cache: Cache, at_B: Array | None) -> tuple[Array, Cache]:
        """x_XTD and the new cache. Patches are not packed together here: each byte is treated as the last one of its
        patch, and only what comes of those that are is read."""
        c, parts, T = self.config, parts_of(self.config, tokens_XT, cache, at_B), tokens_XT.shape[1]
        B, M, S = cache.seen_BMS.shape
        positions_XT, seen_BYS, extended = past(T, None, None, None, cache, at_B)
        positions_XT = jnp.broadcast_to(positions_XT, tokens_XT.shape)

        def window(kind: Kind) -> Array:
            return past(T, c.attention(kind).window, None, None, cache, at_B)[1]

        old = Earlier(parts, seen_BYS.reshape(B, M, T, S)[:, :, 0], extended, positions_XT[:, 0].reshape(B, M))
        entropy_XT, entropy_kv = None, ()
        if self.entropy is not None:
            logits_XTV, of_entropy, _ = self.entropy.decode(
                tokens_XT, cache=cache._replace(kv=parts.entropy), at_B=at_B
            )
            entropy_XT, entropy_kv = entropies(logits_XTV), of_entropy.kv
        ended_XT = self._ended(entropy_XT, positions_XT, old.ended_X())
        number_XT = jnp.concatenate([old.ended_X()[:, None], ended_XT[:, :-1]], axis=1)

        x_XTD = self._read(tokens_XT, old.ids_XL(c.ngrams.longest - 1), positions_XT, None)
        of_encoder = cache._replace(kv=parts.encoder)
        x_XTD, encoder_kv, _ = self.encoder(x_XTD, window("encoder"), positions_XT, cache=of_encoder)
        facts_XT3 = jnp.stack([tokens_XT, ended_XT, ended_XT > number_XT], axis=2).astype(jnp.float32)
        bytes_kv = write(parts.bytes[0], cache.end, KV(x_XTD.swapaxes(1, 2)[:, None], facts_XT3[:, None]))
        pooling = self.pooling_attention.kv(self.pooling_norm.enter(x_XTD))
        pooling_kv = write(parts.pooling[0], cache.end, pooling)

        seen = Seen(bytes_kv, seen_BYS, number_XT.reshape(B, M * T), ended_XT.reshape(B, M * T))
        largest_XTD = running_max(x_XTD, number_XT)
        goes_on_XT1 = (number_XT == number_XT[:, :1])[..., None]
        largest_XTD = jnp.where(
            goes_on_XT1, jnp.maximum(largest_XTD, old.largest_X1D().astype(x_XTD.dtype)), largest_XTD
        )

        def patches() -> tuple[tuple[KV, ...], KV]:
            patch_XTE = self._pooled(largest_XTD, pooling_kv, seen.inside_BYS(), None)
            of_latent = cache._replace(kv=parts.latent)
            patch_XTE, kv, _ = self.latent(patch_XTE, seen.patches_BYS(), number_XT, cache=of_latent)
            nothing = jnp.zeros((B * M, 1, 1, T))
            return kv, write(parts.patches[0], cache.end, KV(nothing, patch_XTE[:, None]))

        # In most steps of decoding no patch ends.
        some = jnp.any(ended_XT > number_XT)
        latent_kv, patches_kv = jax.lax.cond(some, patches, lambda: (parts.latent, parts.patches[0]))

        memory_YE = jnp.take_along_axis(patches_kv.v_BKSH[:, 0], seen.latest_BY()[..., None], axis=1)
        memory = self.decoder.memory(memory_YE.reshape(B * M, T * self.ways, -1).astype(x_XTD.dtype))
        mask_1TQ = (jnp.arange(T)[:, None] == jnp.arange(T * self.ways) // self.ways)[None]
        given = {"memory": memory, "memory_mask_BTS": mask_1TQ, "cache": cache._replace(kv=parts.decoder)}
        x_XTD, decoder_kv, _ = self.decoder(x_XTD, window("decoder"), positions_XT, **given)
        new = Parts(entropy_kv, encoder_kv, (pooling_kv,), latent_kv, decoder_kv, (bytes_kv,), (patches_kv,))
        return x_XTD, extended._replace(kv=new.joined())

    def init_cache(self, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None) -> Cache:
        """An empty cache for `rows` sequences with `beams` beams each and `length` positions per beam.

        `dtype`: type of keys and values; None = the model's dtype.
        """
        return empty_byte_cache(self.config, rows, length, beams, dtype)

    # ---- Outputs ----------------------------------------------------------------------------------------------------

    def logits(self, x_BTD: Array) -> Array:
        """Logits of each byte, float32: logits_BTV."""
        check_width("x_BTD", x_BTD, self.config.d_model)
        logits_BTV = self.output.logits(x_BTD)
        return logits_BTV if self.output_bias is None else logits_BTV + self.output_bias[...]

    @property
    def output(self) -> Embedding:
        """The embedding table that computes the logits."""
        return self.output_embedding or self.embedding
