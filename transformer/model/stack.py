"""Encoder and decoder: N layers of sub-layers, each with a residual connection and a norm (paper §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jax import Array

from transformer.config import ModelConfig
from transformer.model.attention import KV, Attention, write
from transformer.model.layers import FeedForward, LayerNorm, dropout, fold


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


def _attention(config: ModelConfig, rngs: nnx.Rngs) -> Attention:
    c = config
    return Attention(c.d_model, c.heads, c.key_value_heads, c.key_size, c.value_size, rngs=rngs)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.self_attention = _attention(config, rngs)
        self.self_attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, rngs=rngs)
        self.feed_forward_norm = SublayerNorm(config)

    def __call__(self, x_BTD: Array, mask_BTS: Array, key: Array | None) -> Array:
        h = self.self_attention_norm.enter(x_BTD)
        y, _ = self.self_attention(h, self.self_attention.kv(h), mask_BTS)
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD))
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, 1))


class DecoderLayer(nnx.Module):
    """Masked self-attention, attention over the encoder's output, and feed-forward."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.self_attention = _attention(config, rngs)
        self.self_attention_norm = SublayerNorm(config)
        self.cross_attention = _attention(config, rngs)
        self.cross_attention_norm = SublayerNorm(config)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, rngs=rngs)
        self.feed_forward_norm = SublayerNorm(config)

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        memory: KV,
        memory_mask_BTS: Array,
        *,
        cache: KV | None,
        at_B: Array | None,
        key: Array | None,
        want_weights: bool,
    ) -> tuple[Array, KV | None, Array | None]:
        """x_BTD, this layer's cache with the T new positions in it, and the cross-attention's weights_BNTS."""
        h = self.self_attention_norm.enter(x_BTD)
        kv = self.self_attention.kv(h)
        if cache is not None:
            cache = kv = write(cache, kv, at_B)
        y, _ = self.self_attention(h, kv, mask_BTS)
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        h = self.cross_attention_norm.enter(x_BTD)
        y, weights = self.cross_attention(h, memory, memory_mask_BTS, want_weights=want_weights)
        x_BTD = self.cross_attention_norm.leave(x_BTD, y, fold(key, 1))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD))
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, 2)), cache, weights


class Encoder(nnx.Module):
    """N encoder layers; with pre-norm one more norm at the end."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)])
        self.norm = LayerNorm(config.d_model) if config.pre_norm else None

    def __call__(self, x_BTD: Array, mask_BTS: Array, key: Array | None) -> Array:
        for i, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, mask_BTS, fold(key, i))
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Decoder(nnx.Module):
    """N decoder layers; with pre-norm one more norm at the end."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([DecoderLayer(config, rngs=rngs) for _ in range(config.decoder_layers)])
        self.norm = LayerNorm(config.d_model) if config.pre_norm else None

    def memory(self, x_BSD: Array) -> tuple[KV, ...]:
        """Keys and values of the encoder's output for each layer's cross-attention, computed once a sentence."""
        return tuple(layer.cross_attention.kv(x_BSD) for layer in self.layers)

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        memory: Sequence[KV],
        memory_mask_BTS: Array,
        *,
        cache: Sequence[KV] | None,
        at_B: Array | None,
        key: Array | None,
        want_weights: bool,
    ) -> tuple[Array, tuple[KV, ...] | None, tuple[Array, ...] | None]:
        """x_BTD, the caches and the cross-attention weights_BNTS, a layer each; None where not given or not wanted."""
        caches, weights = [], []
        for i, layer in enumerate(self.layers):
            x_BTD, layer_cache, layer_weights = layer(
                x_BTD,
                mask_BTS,
                memory[i],
                memory_mask_BTS,
                cache=None if cache is None else cache[i],
                at_B=at_B,
                key=fold(key, i),
                want_weights=want_weights,
            )
            caches.append(layer_cache)
            weights.append(layer_weights)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return x_BTD, None if cache is None else tuple(caches), tuple(weights) if want_weights else None
