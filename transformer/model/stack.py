"""A stack of N blocks. Each block consists of sub-layers with a residual connection and a norm (paper §3.1).

Shapes: B batch, T length, S memory positions, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ModelConfig, UserError, shown
from .attention import KV, Attention, write
from .cache import Cache
from .checks import check_key
from .initializers import distributions
from .layers import FeedForward, LayerNorm, dropout, fold

Kind = Literal["encoder", "decoder"]
Attended = Literal["self", "cross"]
ALL: tuple[Attended, ...] = ("self", "cross")


class Weights(NamedTuple):
    """The attention weights weights_BNTS of a block, before dropout; None where they were not wanted."""

    self_attention: Array | None
    cross_attention: Array | None


def stacked(weights: Sequence[Array], seen_BT: Array | None = None) -> Array:
    """The weights_BNTS of all blocks as one array weights_BLNTS, float32. Queries are 0 where `seen_BT` is False."""
    weights_BLNTS = jnp.stack(weights, axis=1)
    return weights_BLNTS if seen_BT is None else jnp.where(seen_BT[:, None, None, :, None], weights_BLNTS, 0.0)


class Run(NamedTuple):
    """Options of running a stack. They do not change the result."""

    remat: bool = False
    """Save memory (rematerialisation): keep only the inputs of the blocks, and recompute the rest for the gradient."""
    between: Callable[[Array], Array] = lambda x_BTD: x_BTD
    """Function applied to x_BTD before the first block and after each block, such as a sharding constraint."""


RUN = Run()


def check_run(run: object, key: object) -> None:
    """Raise `UserError` unless these are options of running a stack, and a key or None."""
    check_key(key)
    if not isinstance(run, Run) or not callable(run.between):
        raise UserError(f"run = {shown(run)}: give a transformer.model.Run, or leave it out")


class SublayerNorm(LayerNorm):
    """The norm of a sub-layer, applied before or after it.

    Post-norm (the paper): LayerNorm(x + Dropout(sublayer(x))). Pre-norm: x + Dropout(sublayer(LayerNorm(x))).
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.pre_norm = config.pre_norm
        self.rate = config.dropout

    def enter(self, x_BTD: Array) -> Array:
        """The sub-layer's input: x, normalised if pre-norm."""
        return self(x_BTD) if self.pre_norm else x_BTD

    def leave(self, x_BTD: Array, y_BTD: Array, key: Array | None) -> Array:
        """The residual sum of x and the sub-layer's output y, normalised if post-norm."""
        joined = x_BTD + dropout(y_BTD, self.rate, key)
        return joined if self.pre_norm else self(joined)


class Block(nnx.Module):
    """One block: self-attention, cross-attention to a memory (only with `cross`), and feed-forward."""

    def __init__(self, config: ModelConfig, kind: Kind, layer: int, *, cross: bool, rngs: nnx.Rngs):
        start = distributions(config.initializer, (3 if cross else 2) * layers_of(config, kind))

        def attention(kind: str) -> Attention:
            """Of each `kv_sharing` neighbouring blocks, the first computes keys and values for all of them."""
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
        want_weights: Collection[Attended] = (),
    ) -> tuple[Array, KV, Weights]:
        """Return x_BTD, the `KV` of self-attention, and the weights of the attentions that `want_weights` names.

        `shared`: keys and values of an earlier block; None = compute them here. `slots`: the cache's `KV` and its first
        free slot, where new keys and values are written (see `attention.write`). `memory`: the `KV` of cross-attention
        and its mask_BTS. A `key` switches dropout on.
        """
        cross_weights = None
        h = self.self_attention_norm.enter(x_BTD)
        with jax.named_scope("self_attention"):
            kv = self.self_attention.kv(h, positions_BT) if shared is None else shared
            if slots is not None:
                kv = write(*slots, kv)
            options = {"key": fold(key, 3), "want_weights": "self" in want_weights}
            y, self_weights = self.self_attention(h, kv, mask_BTS, positions_BT, **options)
        x_BTD = self.self_attention_norm.leave(x_BTD, y, fold(key, 0))
        if self.cross_attention is not None:
            h = self.cross_attention_norm.enter(x_BTD)
            with jax.named_scope("cross_attention"):
                options = {"key": fold(key, 4), "want_weights": "cross" in want_weights}
                y, cross_weights = self.cross_attention(h, *memory, **options)
            x_BTD = self.cross_attention_norm.leave(x_BTD, y, fold(key, 1))
        y = self.feed_forward(self.feed_forward_norm.enter(x_BTD), key=fold(key, 5))
        last = 1 if self.cross_attention is None else 2
        return self.feed_forward_norm.leave(x_BTD, y, fold(key, last)), kv, Weights(self_weights, cross_weights)


class Stack(nnx.Module):
    """N blocks; with pre-norm, followed by one more norm."""

    def __init__(self, config: ModelConfig, kind: Kind, *, cross: bool = False, rngs: nnx.Rngs):
        """`cross`: give the blocks cross-attention to a memory."""
        layers = range(layers_of(config, kind))
        self.sharing = config.attention(kind).kv_sharing
        self.memory_sharing = config.attention("cross").kv_sharing
        self.layers = nnx.List([Block(config, kind, i, cross=cross, rngs=rngs) for i in layers])
        self.norm = LayerNorm(config) if config.pre_norm else None

    def memory(self, x_BSD: Array) -> tuple[KV, ...]:
        """Cross-attention keys and values of the encoder's output: one `KV` per group of blocks that share them."""
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
        want_weights: Collection[Attended] = (),
        run: Run = RUN,
    ) -> tuple[Array, tuple[KV, ...], tuple[Weights, ...]]:
        """Return x_BTD, the `KV`s of self-attention, and of each block the weights of the attentions that
        `want_weights` names.

        There is one `KV` per group of blocks that share keys and values; with a cache, it is the cache's `KV` with the
        new positions written. `memory`: the result of the method `memory`. `positions_BT` is needed only for rotary
        positions. A `key` switches dropout on.
        """
        kvs: list[KV] = []
        weights = []
        x_BTD = run.between(x_BTD)
        for i, block in enumerate(self.layers):
            fresh = i % self.sharing == 0
            step = partial(block, want_weights=want_weights)
            x_BTD, kv, block_weights = (jax.checkpoint(step) if run.remat else step)(
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
            weights.append(block_weights)
        return x_BTD if self.norm is None else self.norm(x_BTD), tuple(kvs), tuple(weights)


def layers_of(config: ModelConfig, kind: Kind) -> int:
    """Number of blocks in a stack of this kind."""
    return config.encoder_layers if kind == "encoder" else config.decoder_layers
