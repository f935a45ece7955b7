"""A stack of N blocks: sub-layers, each with a residual connection and a norm (paper §3.1).

Shapes: B batch, T length, S memory positions, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
from flax import nnx
from jax import Array

from transformer.config import ModelConfig
from transformer.model.attention import KV, Attention, write
from transformer.model.cache import Cache
from transformer.model.initializers import matrices
from transformer.model.layers import FeedForward, LayerNorm, dropout, fold

Kind = Literal["encoder", "decoder"]


class Run(NamedTuple):
    """How a stack is run. It changes no result."""

    remat: bool = False
    """Save memory: keep only what goes from block to block, and compute the rest again for the gradient."""
    between: Callable[[Array], Array] = lambda x_BTD: x_BTD
    """Applied to x_BTD before the first block and after each, such as a sharding constraint."""


RUN = Run()


class SublayerNorm(LayerNorm):
    """The norm of a sub-layer, and where it stands.

    Post-norm (the paper): LayerNorm(x + Dropout(sublayer(x))). Pre-norm: x + Dropout(sublayer(LayerNorm(x))).
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.pre_norm = config.pre_norm
        self.rate = config.dropout

    def enter(self, x_BTD: Array) -> Array:
        """The sub-layer's input."""
        return self(x_BTD) if self.pre_norm else x_BTD

    def leave(self, x_BTD: Array, y_BTD: Array, key: Array | None) -> Array:
        """The residual sum of x and the sub-layer's output y."""
        joined = x_BTD + dropout(y_BTD, self.rate, key)
        return joined if self.pre_norm else self(joined)


class Block(nnx.Module):
    """Self-attention, attention to a memory (with `cross` only), and feed-forward."""

    def __init__(self, config: ModelConfig, kind: Kind, layer: int, *, cross: bool, rngs: nnx.Rngs):
        start = matrices(config.initializer, (3 if cross else 2) * layers_of(config, kind))

        def attention(kind: str) -> Attention:
            """The first of each `kv_sharing` neighbours makes keys and values for all of them."""
            own_kv = layer % config.attention(kind).kv_sharing == 0
            return Attention(config, kind, own_kv=own_kv, start=start, rngs=rngs)

        self.self_attention = attention(kind)
        self.self_attention_norm = SublayerNorm(config)
        self.cross_attention = attention("cross") if cross else None
        self.cross_attention_norm = SublayerNorm(config) if cross else None
        self.feed_forward = FeedForward(config, start=start, rngs=rngs)
        self.feed_forward_norm = SublayerNorm(config)

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        positions_BT: Array | None = None,
        *,
        shared: KV | None = None,
        slots: tuple[KV, Array] | None = None,
        memory: tuple[KV, Array] | None = None,
        key: Array | None = None,
        want_weights: bool = False,
    ) -> tuple[Array, KV, Array | None]:
        """x_BTD, the keys and values of self-attention, and the cross-attention's weights_BNTS, if wanted.

        Keys and values are `shared` by an earlier block, or made here, and then written to the `slots` of a cache if
        there are any: see `attention.write`. `memory`: keys and values of cross-attention, with its mask_BTS.
        """
        weights = None
        h = self.self_attention_norm.enter(x_BTD)
        with jax.named_scope("self_attention"):
            kv = self.self_attention.kv(h, positions_BT) if shared is None else shared
            if slots is not None:
                kv = write(*slots, kv)
            y, _ = self.self_attention(h, kv, mask_BTS, positions_BT, key=fold(key, 3))
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        if self.cross_attention is not None:
            h = self.cross_attention_norm.enter(x_BTD)
            with jax.named_scope("cross_attention"):
                y, weights = self.cross_attention(h, *memory, key=fold(key, 4), want_weights=want_weights)
            x_BTD = self.cross_attention_norm.leave(x_BTD, y, fold(key, 1))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD))
        last = 1 if self.cross_attention is None else 2
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, last)), kv, weights


class Stack(nnx.Module):
    """N blocks; with pre-norm one more norm at the end."""

    def __init__(self, config: ModelConfig, kind: Kind, *, cross: bool = False, rngs: nnx.Rngs):
        """With `cross`, the blocks attend to a memory, too."""
        layers = range(layers_of(config, kind))
        self.sharing = config.attention(kind).kv_sharing
        self.memory_sharing = config.attention("cross").kv_sharing
        self.layers = nnx.List([Block(config, kind, i, cross=cross, rngs=rngs) for i in layers])
        self.norm = LayerNorm(config) if config.pre_norm else None

    def memory(self, x_BSD: Array) -> tuple[KV, ...]:
        """Keys and values of the encoder's output: one `KV` for each group of blocks that shares them."""
        return tuple(block.cross_attention.kv(x_BSD) for block in self.layers[:: self.memory_sharing])

    def __call__(
        self,
        x_BTD: Array,
        mask_BTS: Array,
        positions_BT: Array | None = None,
        *,
        memory: Sequence[KV] = (),
        memory_mask_BTS: Array | None = None,
        cache: Cache | None = None,
        key: Array | None = None,
        want_weights: bool = False,
        run: Run = RUN,
    ) -> tuple[Array, tuple[KV, ...], tuple[Array | None, ...]]:
        """x_BTD; keys and values of self-attention; the cross-attention's weights_BNTS of each block, if wanted.

        Of keys and values there is one `KV` for each group of blocks that shares them, written to the cache if there
        is one. `memory` is what the method `memory` returns. `positions_BT`: needed for rotary positions only.
        """
        kvs: list[KV] = []
        weights = []
        x_BTD = run.between(x_BTD)
        for i, block in enumerate(self.layers):
            fresh = i % self.sharing == 0
            step = partial(block, want_weights=want_weights)
            x_BTD, kv, found = (jax.checkpoint(step) if run.remat else step)(
                x_BTD,
                mask_BTS,
                positions_BT,
                shared=None if fresh else kvs[-1],
                slots=(cache.kv[len(kvs)], cache.end) if fresh and cache is not None else None,
                memory=(memory[i // self.memory_sharing], memory_mask_BTS) if memory else None,
                key=fold(key, i),
            )
            x_BTD = run.between(x_BTD)
            kvs += [kv] if fresh else []
            weights.append(found)
        return x_BTD if self.norm is None else self.norm(x_BTD), tuple(kvs), tuple(weights)


def layers_of(config: ModelConfig, kind: Kind) -> int:
    """The number of blocks in a stack."""
    return config.encoder_layers if kind == "encoder" else config.decoder_layers
