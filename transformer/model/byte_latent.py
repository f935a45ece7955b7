"""The Byte Latent Transformer (Pagnoni et al. 2024, arXiv 2412.09871): a language model of bytes in patches.

A local encoder reads bytes; each patch becomes one vector, which a latent Transformer reads; a local decoder predicts
bytes. Byte i is predicted with the latent of the patch before its own. That patch ends with byte i - 1 at the latest.

Shapes: B rows, T bytes, P patches, D width of bytes, W ways = width of patches / D, Q = P * W queries of patches,
M beams, S slots of the cache; X = B * M rows with T new bytes, in the cache's order Y = M * T queries of each row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ByteLatentModel, ModelConfig, UserError, check_byte_latent
from .attention import KV, Attention, write
from .cache import Cache, causal, past, within
from .checks import INT32_MAX, check_complete, check_float, check_ids, check_integer, check_width
from .decoder import Decoder
from .initializers import distributions
from .inputs import input_norm, inputs, position_table
from .layers import Dense, Embedding, fold
from .patches import ended, entropies, most, ngrams, running_max
from .stack import RUN, Kind, Run, Stack, SublayerNorm, check_run, layers_of


class Parts(NamedTuple):
    """The `KV`s of a cache, by what reads them. All have a slot for each byte.

    The slot of the last byte of a patch also holds what is known of the patch.
    """

    entropy: tuple[KV, ...]
    encoder: tuple[KV, ...]
    pooling: tuple[KV, ...]
    """One, of the attention that makes patches of bytes."""
    latent: tuple[KV, ...]
    decoder: tuple[KV, ...]
    bytes: tuple[KV, ...]
    """One: as keys the states of the local encoder, of size D; as values the id of the byte, the number of the patches
    that have ended with it, and whether one ends with it, in float32."""
    patches: tuple[KV, ...]
    """One: as values the latents of the patches, of size D * W. Its keys, a number each, are not used."""

    def joined(self) -> tuple[KV, ...]:
        return tuple(kv for part in self for kv in part)


class ByteLatent(nnx.Module):
    """Local encoder, latent Transformer and local decoder, and the byte model whose entropies cut patches."""

    def __init__(self, config: ByteLatentModel, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) if the config breaks a rule or its vocab_size is None."""
        check_complete(config)
        check_byte_latent(config)
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
        self.output_bias = None
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
            return *self._cached(tokens_BT, cache, at_B), None
        rows, T = tokens_BT.shape
        positions_BT = jnp.arange(T)[None]
        number_BT, ended_BT = self.patches(tokens_BT)
        earlier_BL = jnp.zeros((rows, self.config.ngrams.longest - 1), tokens_BT.dtype)
        x_BTD = self._read(tokens_BT, earlier_BL, positions_BT, fold(key, 0))
        mask_BTS = within(self.config.attention("encoder").window, causal(T), positions_BT, positions_BT)
        x_BTD, _, _ = self.encoder(x_BTD, mask_BTS, positions_BT, key=fold(key, 1), run=run)

        # One vector for each patch: its last byte is at done_BT - 1, the number of the last patch that has ended.
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
        """The number of the patch of each byte, from 0, and the number of patches that have ended with it: (B, T)."""
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
        """Embeddings of bytes and of the n-grams that end with them: x_BTD."""
        more_BTD = None
        if self.ngram_embedding is not None:
            found = [self.ngram_embedding.embed(row) for row in ngrams(self.config.ngrams, earlier_BL, tokens_BT)]
            more_BTD = sum(found)
        return inputs(
            *(self.config, self.embedding, self.positions, tokens_BT, positions_BT, key),
            **{"norm": self.input_norm, "types_BTD": more_BTD},
        )

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
        c, parts, T = self.config, self._parts(cache.kv), tokens_XT.shape[1]
        B, M, S = cache.seen_BMS.shape
        if tokens_XT.shape[0] != B * M or cache.kv[-1].v_BKSH.shape[2] != S:
            raise UserError(f"tokens_BT has {len(tokens_XT)} rows: the cache is for {B} sentences of {M} beams")
        positions_XT, seen_BYS, extended = past(T, None, None, None, cache, at_B)
        positions_XT = jnp.broadcast_to(positions_XT, tokens_XT.shape)

        def window(kind: Kind) -> Array:
            return past(T, c.attention(kind).window, None, None, cache, at_B)[1]

        old = _Old(parts, seen_BYS.reshape(B, M, T, S)[:, :, 0], extended, positions_XT[:, 0].reshape(B, M))
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

        seen = _Seen(bytes_kv, seen_BYS, number_XT.reshape(B, M * T), ended_XT.reshape(B, M * T))
        largest_XTD = running_max(x_XTD, number_XT)
        goes_on_XT1 = (number_XT == number_XT[:, :1])[..., None]
        largest_XTD = jnp.where(goes_on_XT1, jnp.maximum(largest_XTD, old.largest_X1D()), largest_XTD)

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
        for name, number in (("rows", rows), ("length", length), ("beams", beams)):
            check_integer(name, number, 1)
        S = length * beams
        check_integer("rows * beams * length", int(rows) * int(S), 1, INT32_MAX)
        c, dtype = self.config, check_float("dtype", self.config.dtype if dtype is None else dtype)

        def zeros(heads: int, keys: int, values: int, of_values: Any = dtype) -> KV:
            return KV(jnp.zeros((rows, heads, keys, S), dtype), jnp.zeros((rows, heads, S, values), of_values))

        def stack(config: ModelConfig, kind: Kind) -> tuple[KV, ...]:
            count, heads = groups(config, kind), config.attention(kind).kv_heads
            return tuple(zeros(heads, config.key_size, config.value_size) for _ in range(count))

        parts = Parts(
            entropy=() if self.entropy is None else stack(c.entropy, "decoder"),
            encoder=stack(c, "encoder"),
            pooling=(zeros(c.attention("cross").kv_heads, c.key_size, c.value_size),),
            latent=stack(c.latent, "decoder"),
            decoder=stack(c, "decoder"),
            bytes=(zeros(1, c.d_model, 3, jnp.float32),),
            patches=(zeros(1, 1, c.latent.d_model),),
        )
        return Cache(parts.joined(), jnp.zeros((rows, beams, S), bool), jnp.zeros((rows, S), jnp.int32), jnp.int32(0))

    def _parts(self, kvs: tuple[KV, ...]) -> Parts:
        """The parts of a cache of `init_cache`. Raises `UserError` for one of another model."""
        c, found, at = self.config, [], 0
        entropy = 0 if self.entropy is None else groups(c.entropy, "decoder")
        counts = (entropy, groups(c, "encoder"), 1, groups(c.latent, "decoder"), groups(c, "decoder"), 1, 1)
        for count in counts:
            found.append(tuple(kvs[at : at + count]))
            at += count
        if at != len(kvs):
            raise UserError(f"cache is of another model: it has {len(kvs)} keys and values, and this model needs {at}")
        return Parts(*found)

    # ---- Outputs ----------------------------------------------------------------------------------------------------

    def logits(self, x_BTD: Array) -> Array:
        """Logits of each byte, float32: logits_BTV."""
        check_width("x_BTD", x_BTD, self.config.d_model)
        return self.output.logits(x_BTD)

    @property
    def output(self) -> Embedding:
        """The embedding table that computes the logits."""
        return self.output_embedding or self.embedding


def groups(config: ModelConfig, kind: Kind) -> int:
    """Number of `KV`s of a stack: one for each group of blocks that share keys and values."""
    return -(-layers_of(config, kind) // config.attention(kind).kv_sharing)


class _Old(NamedTuple):
    """What a cache holds of the bytes before the new ones."""

    parts: Parts
    seen_BMS: Array
    """True where the slot holds an earlier byte of this beam, or its first new one."""
    extended: Cache
    at_BM: Array
    """Position of the first new byte."""

    def _facts(self, i: int) -> Array:
        return self.parts.bytes[0].v_BKSH[:, 0, :, i].astype(jnp.int32)[:, None]

    def _back(self) -> Array:
        """How many positions before the first new byte a slot is; 0 or less where it holds no earlier byte."""
        return jnp.where(self.seen_BMS, self.at_BM[..., None] - self.extended.positions_BS[:, None], 0)

    def ended_X(self) -> Array:
        """The number of patches that have ended."""
        return jnp.max(jnp.where(self._back() > 0, self._facts(1), 0), axis=2).reshape(-1)

    def ids_XL(self, count: int) -> Array:
        """The last `count` ids; 0 where there are none."""
        back_BMS, ids_B1S = self._back(), self._facts(0)
        found = [jnp.sum(jnp.where(back_BMS == n, ids_B1S, 0), axis=2).reshape(-1) for n in range(count, 0, -1)]
        return jnp.stack(found, axis=1) if found else jnp.zeros((self.at_BM.size, 0), jnp.int32)

    def largest_X1D(self) -> Array:
        """The maximum over the bytes of the patch that has not ended; -inf without any."""
        number_BMS = self._facts(1) - self._facts(2)
        before_BM1 = self.ended_X().reshape(*self.at_BM.shape, 1)
        open_BM1S = ((self._back() > 0) & (number_BMS == before_BM1))[:, :, None]
        states_B1DS = self.parts.bytes[0].k_BKHS
        largest_BMD = jnp.max(jnp.where(open_BM1S, states_B1DS, -jnp.inf), axis=3)
        return largest_BMD.reshape(-1, 1, largest_BMD.shape[2])


class _Seen(NamedTuple):
    """What the new bytes may read, of the cache that holds them, too."""

    bytes: KV
    seen_BYS: Array
    number_BY: Array
    """The patch of each new byte."""
    ended_BY: Array

    def _facts(self, i: int) -> Array:
        return self.bytes.v_BKSH[:, 0, :, i].astype(jnp.int32)[:, None]

    def inside_BYS(self) -> Array:
        """The bytes of the same patch."""
        return self.seen_BYS & (self._facts(1) - self._facts(2) == self.number_BY[..., None])

    def patches_BYS(self) -> Array:
        """The last bytes of patches."""
        return self.seen_BYS & (self._facts(2) > 0)

    def latest_BY(self) -> Array:
        """The slot of the last byte of the last patch that has ended."""
        latest_BYS = self.patches_BYS() & (self._facts(1) == self.ended_BY[..., None])
        return jnp.argmax(latest_BYS, axis=2)
