"""The cache of a Byte Latent Transformer: a slot for each byte, in which what is known of patches stands, too.

Shapes: B sentences, M beams, S slots, T new bytes; X = B * M rows, Y = M * T queries of each sentence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ..config import ByteLatentModel, ModelConfig, UserError
from .attention import KV
from .cache import Cache, check_kv, check_room
from .checks import INT32_MAX, check_float, check_integer
from .stack import Kind, layers_of


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


def groups(config: ModelConfig, kind: Kind) -> int:
    """Number of `KV`s of a stack: one for each group of blocks that share keys and values."""
    return -(-layers_of(config, kind) // config.attention(kind).kv_sharing)


def counts(config: ByteLatentModel) -> Parts:
    """The number of `KV`s in each part."""
    c = config
    entropy = groups(c.entropy, "decoder") if c.patches.by == "entropy" else 0
    return Parts(entropy, groups(c, "encoder"), 1, groups(c.latent, "decoder"), groups(c, "decoder"), 1, 1)


def empty_byte_cache(
    config: ByteLatentModel, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None
) -> Cache:
    """An empty cache for `rows` sequences with `beams` beams each and `length` positions per beam.

    `dtype`: type of keys and values; None = the model's dtype.
    """
    for name, number in (("rows", rows), ("length", length), ("beams", beams)):
        check_integer(name, number, 1)
    check_integer("rows * beams * length", int(rows) * int(beams) * int(length), 1, INT32_MAX)
    c, S, dtype = config, length * beams, check_float("dtype", config.dtype if dtype is None else dtype)

    def zeros(heads: int, keys: int, values: int, of_values: Any = dtype) -> KV:
        return KV(jnp.zeros((rows, heads, keys, S), dtype), jnp.zeros((rows, heads, S, values), of_values))

    def stack(part: ModelConfig, kind: str, count: int) -> tuple[KV, ...]:
        return tuple(zeros(part.attention(kind).kv_heads, part.key_size, part.value_size) for _ in range(count))

    n = counts(c)
    parts = Parts(
        entropy=stack(c.entropy, "decoder", n.entropy),
        encoder=stack(c, "encoder", n.encoder),
        pooling=stack(c, "cross", n.pooling),
        latent=stack(c.latent, "decoder", n.latent),
        decoder=stack(c, "decoder", n.decoder),
        bytes=(zeros(1, c.d_model, 3, jnp.float32),),
        patches=(zeros(1, 1, c.latent.d_model),),
    )
    return Cache(parts.joined(), jnp.zeros((rows, beams, S), bool), jnp.zeros((rows, S), jnp.int32), jnp.int32(0))


def parts_of(config: ByteLatentModel, tokens_XT: Array, cache: Cache, at_B: Array | None) -> Parts:
    """The parts of a cache. Raises `UserError` if these new bytes can't be read with it, at these positions."""
    if not isinstance(cache, Cache):
        raise UserError(f"cache is a {type(cache).__name__}: give what `init_cache` returns")
    found, at = [], 0
    for count in counts(config):
        found.append(tuple(cache.kv[at : at + count]))
        at += count
    if at != len(cache.kv):
        raise UserError(f"cache is of another model: it has {len(cache.kv)} keys and values, this model needs {at}")
    parts = Parts(*found)
    check_kv("cache", parts.decoder, config, "decoder", cache.seen_BMS.shape[0], cache.seen_BMS.shape[2])
    check_room(tokens_XT, cache, at_B)
    return parts


class Earlier(NamedTuple):
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


class Seen(NamedTuple):
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
