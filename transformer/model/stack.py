"""Encoder and decoder: N layers of sub-layers, each with a residual connection and a norm (paper §3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
from flax import nnx
from jax import Array

from transformer.config import ModelConfig
from transformer.model.attention import KV, Attention, write
from transformer.model.initializers import Matrices, matrices
from transformer.model.layers import FeedForward, LayerNorm, dropout, fold

Between = Callable[[Array], Array]


class SublayerNorm(LayerNorm):
    """The norm of a sub-layer, and where it stands.

    Post-norm (the paper): LayerNorm(x + Dropout(sublayer(x))). Pre-norm: x + Dropout(sublayer(LayerNorm(x))).
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config.d_model)
        self.pre_norm = config.pre_norm
        self.rate = config.dropout

    def enter(self, x_BTD: Array) -> Array:
        """What the sub-layer sees of x."""
        return self(x_BTD) if self.pre_norm else x_BTD

    def leave(self, x_BTD: Array, y_BTD: Array, key: Array | None) -> Array:
        """x joined with the sub-layer's output y."""
        joined = x_BTD + dropout(y_BTD, self.rate, key)
        return joined if self.pre_norm else self(joined)


def _attention(config: ModelConfig, kind: str, layer: int, start: Matrices, rngs: nnx.Rngs) -> Attention:
    """That of one layer; the first of each `kv_sharing` neighbours makes keys and values for all of them."""
    c, own = config, config.attention(kind)
    first = layer % own.kv_sharing == 0
    sizes = c.d_model, c.heads, own.kv_heads, c.key_size, c.value_size
    return Attention(*sizes, own_kv=first, kernel=c.attention_kernel, start=start, rngs=rngs)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        start = matrices(config.initializer, 2 * config.encoder_layers)
        self.self_attention = _attention(config, "encoder", layer, start, rngs)
        self.self_attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, start=start, rngs=rngs)
        self.feed_forward_norm = SublayerNorm(config)

    def __call__(self, x_BTD: Array, shared: KV | None, mask_BTS: Array, key: Array | None) -> tuple[Array, KV]:
        """x_BTD, and the keys and values used: this layer's own, or those `shared` by the layer before."""
        h = self.self_attention_norm.enter(x_BTD)
        with jax.named_scope("self_attention"):
            kv = self.self_attention.kv(h) if shared is None else shared
            y, _ = self.self_attention(h, kv, mask_BTS)
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD))
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, 1)), kv


class DecoderLayer(nnx.Module):
    """Masked self-attention, attention over the encoder's output, and feed-forward."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        start = matrices(config.initializer, 3 * config.decoder_layers)
        self.self_attention = _attention(config, "decoder", layer, start, rngs)
        self.self_attention_norm = SublayerNorm(config)
        self.cross_attention = _attention(config, "cross", layer, start, rngs)
        self.cross_attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, start=start, rngs=rngs)
        self.feed_forward_norm = SublayerNorm(config)

    def __call__(
        self,
        x_BTD: Array,
        kv_of: Callable[[Attention, Array], KV],
        mask_BTS: Array,
        memory: KV,
        memory_mask_BTS: Array,
        *,
        key: Array | None,
        want_weights: bool,
    ) -> tuple[Array, Array | None]:
        """x_BTD and the cross-attention's weights_BNTS. `kv_of` gives the keys and values of self-attention for its
        input: fresh, written to a cache, or another layer's."""
        h = self.self_attention_norm.enter(x_BTD)
        with jax.named_scope("self_attention"):
            y, _ = self.self_attention(h, kv_of(self.self_attention, h), mask_BTS)
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        h = self.cross_attention_norm.enter(x_BTD)
        with jax.named_scope("cross_attention"):
            y, weights = self.cross_attention(h, memory, memory_mask_BTS, want_weights=want_weights)
        x_BTD = self.cross_attention_norm.leave(x_BTD, y, fold(key, 1))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD))
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, 2)), weights


class Encoder(nnx.Module):
    """N encoder layers; with pre-norm one more norm at the end."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.sharing = config.attention("encoder").kv_sharing
        self.layers = nnx.List([EncoderLayer(config, i, rngs=rngs) for i in range(config.encoder_layers)])
        self.norm = LayerNorm(config.d_model) if config.pre_norm else None

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        key: Array | None,
        *,
        remat: bool = False,
        between: Between = lambda x: x,
    ) -> Array:
        kv = None
        for i, layer in enumerate(self.layers):
            run = jax.checkpoint(layer.__call__) if remat else layer
            x_BTD, kv = run(x_BTD, kv if i % self.sharing else None, mask_BTS, fold(key, i))
            x_BTD = between(x_BTD)
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Decoder(nnx.Module):
    """N decoder layers; with pre-norm one more norm at the end."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.sharing = config.attention("decoder").kv_sharing
        self.memory_sharing = config.attention("cross").kv_sharing
        self.layers = nnx.List([DecoderLayer(config, i, rngs=rngs) for i in range(config.decoder_layers)])
        self.norm = LayerNorm(config.d_model) if config.pre_norm else None

    def memory(self, x_BSD: Array) -> tuple[KV, ...]:
        """Keys and values of the encoder's output for cross-attention, computed once a sentence; one `KV` for each
        group of layers that shares one."""
        return tuple(layer.cross_attention.kv(x_BSD) for layer in self.layers[:: self.memory_sharing])

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        memory: Sequence[KV],
        memory_mask_BTS: Array,
        *,
        cache: Sequence[KV] | None,
        end: Array | None,
        beams: int,
        key: Array | None,
        want_weights: bool,
        remat: bool = False,
        between: Between = lambda x: x,
    ) -> tuple[Array, tuple[KV, ...], tuple[Array, ...] | None]:
        """x_BTD; keys and values of self-attention, with those of the cache if given; a layer's cross-attention
        weights_BNTS each if wanted. `cache`, `end` and `beams` as in `write`, one cache for each group of layers."""
        kvs: list[KV] = []
        weights = []

        def run(
            layer: DecoderLayer, x_BTD: Array, shared: KV | None, old: KV | None, kv: KV, key: Array | None
        ) -> tuple[Array, KV, Array | None]:
            """A layer on x: what it makes of it, and the keys and values of its self-attention."""
            used = shared

            def kv_of(attention: Attention, h_BTD: Array) -> KV:
                nonlocal used
                if used is None:
                    used = attention.kv(h_BTD)
                    if old is not None:
                        used = write(old, used, end, beams)
                return used

            y_BTD, own = layer(x_BTD, kv_of, mask_BTS, kv, memory_mask_BTS, key=key, want_weights=want_weights)
            return y_BTD, used, own

        for i, layer in enumerate(self.layers):
            fresh = i % self.sharing == 0
            old = cache[len(kvs)] if fresh and cache is not None else None
            step = partial(run, layer)
            x_BTD, used, layer_weights = (jax.checkpoint(step) if remat else step)(
                x_BTD, None if fresh else kvs[-1], old, memory[i // self.memory_sharing], fold(key, i)
            )
            x_BTD = between(x_BTD)
            if fresh:
                kvs.append(used)
            weights.append(layer_weights)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return x_BTD, tuple(kvs), tuple(weights) if want_weights else None
