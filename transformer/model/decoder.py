"""The decoder alone: a language model (Radford et al. 2019, GPT-2), from the pieces so far to logits of the next."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import ModelConfig, UserError
from .cache import Cache, check_cache, empty_cache, past
from .checks import check_complete, check_ids, check_length, check_positions, check_width
from .initializers import constant
from .inputs import input_norm, inputs, position_table, shifted
from .layers import Embedding, fold
from .stack import RUN, Attended, Run, Stack, Weights, check_run, stacked


class Decoder(nnx.Module):
    """A stack of blocks without cross-attention, and its embedding table, which may be tied to the output.

    No id is padding here: `segments_BT` keeps the padding of packed rows apart.

    Shapes: B batch, T length, D model, V vocabulary, M beams.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) if the config breaks a rule or its vocab_size is None."""
        check_complete(config)
        self.config, self.vocab_size = config, config.vocab_size
        self.embedding = Embedding(config, rngs=rngs)
        self.output_embedding = Embedding(config, rngs=rngs) if config.tied_embeddings == "none" else None
        self.positions = position_table(config, rngs=rngs)
        self.input_norm = input_norm(config)
        self.decoder = Stack(config, "decoder", rngs=rngs)
        self.output_bias = constant(0, config.vocab_size) if config.output_bias else None

    def __call__(
        self,
        tokens_BT: Array,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BTS: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Array:
        """Return logits_BTV, float32: at position t, logits of the piece that follows `tokens_BT[:, :t + 1]`.

        `tokens_BT` are integer ids. A `key` switches dropout on. For packed rows, which hold several documents,
        `segments_BT` numbers the documents; `positions_BT` = None counts in each from 0. `mask_BTS` replaces the causal
        mask (see `EncoderDecoder.hidden`).

        Raises `UserError` (a ValueError) for wrong types or shapes. Outside `jax.jit` it also raises for ids outside
        the vocabulary and positions beyond the learned ones.
        """
        given = {"positions_BT": positions_BT, "segments_BT": segments_BT, "mask_BTS": mask_BTS}
        return self.decode(tokens_BT, **given, key=key, run=run)[0]

    def attention(
        self,
        tokens_BT: Array,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BTS: Array | None = None,
        run: Run = RUN,
    ) -> tuple[Array, dict[str, Array]]:
        """Return the logits_BTV of `__call__`, and {'decoder': weights_BLNTS}, all attention weights of the same pass.

        Their shape is (B, layers, heads, queries, keys): `weights["decoder"][b, l, n, t, s]` is how much of piece s
        head n of layer l takes in, when the model predicts what follows `tokens_BT[b, :t + 1]`. The weights of a query
        sum to 1, and are exactly 0 at keys that it may not attend to. Arguments and errors are those of `__call__`. A
        fused attention kernel is not used.
        """
        given = {"positions_BT": positions_BT, "segments_BT": segments_BT, "mask_BTS": mask_BTS}
        options = {"cache": None, "at_B": None, "key": None, "run": run, "want_weights": ("self",)}
        x_BTD, _, weights = self._decoded(tokens_BT, None, **given, **options)
        return self.logits(x_BTD), {"decoder": stacked([one.self_attention for one in weights])}

    def decode(self, tokens_BT: Array, memory: None = None, **options: Any) -> tuple[Array, Cache | None, Any]:
        """Return logits_BTV (float32), the new cache and the weights: `hidden` with its options, then `logits`."""
        x_BTD, cache, weights = self.hidden(tokens_BT, memory, **options)
        return self.logits(x_BTD), cache, weights

    def hidden(
        self,
        tokens_BT: Array,
        memory: None = None,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BTS: Array | None = None,
        cache: Cache | None = None,
        at_B: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> tuple[Array, Cache | None, None]:
        """Run the decoder. Return x_BTD for `logits`, the new cache, and None.

        Arguments and results are those of `EncoderDecoder.hidden`, so that the same search decodes with both; there is
        no `memory` here. With a cache (see `init_cache`), the tokens have positions `at_B`, `at_B + 1`, … and also
        attend to the earlier positions in the cache. Raises the errors of `__call__`, and `UserError` if the cache has
        no room for the tokens.
        """
        options = (positions_BT, segments_BT, mask_BTS, cache, at_B, key, run)
        return *self._decoded(tokens_BT, memory, *options)[:2], None

    @jax.named_scope("decode")
    def _decoded(
        self,
        tokens_BT: Array,
        memory: None,
        positions_BT: Array | None,
        segments_BT: Array | None,
        mask_BTS: Array | None,
        cache: Cache | None,
        at_B: Array | None,
        key: Array | None,
        run: Run,
        want_weights: Collection[Attended] = (),
    ) -> tuple[Array, Cache | None, tuple[Weights, ...]]:
        """`hidden`, with the weights of each block that `want_weights` names."""
        check_run(run, key)
        check_ids("tokens_BT", tokens_BT, self.vocab_size)
        if memory is not None:
            raise UserError(f"memory is a {type(memory).__name__}: a model without encoder has none; leave it out")
        check_cache(self.config, tokens_BT, cache, at_B, positions_BT, segments_BT, mask_BTS)
        rows, T = tokens_BT.shape
        if self.positions is not None and cache is None and positions_BT is None and segments_BT is None:
            check_length("tokens_BT", T, len(self.positions[...]))
        window = self.config.attention("decoder").window
        positions_BT, mask_BTS, extended = past(T, window, positions_BT, segments_BT, cache, at_B, mask_BTS)
        positions_BT = shifted(self.config, positions_BT, rows, fold(key, 2))
        if self.positions is not None:
            check_positions("tokens_BT", tokens_BT, positions_BT, len(self.positions[...]))
        x_BTD = inputs(
            *(self.config, self.embedding, self.positions, tokens_BT, positions_BT, fold(key, 0)), norm=self.input_norm
        )
        options = {"cache": cache, "key": fold(key, 1), "want_weights": want_weights, "run": run}
        x_BTD, kv, weights = self.decoder(x_BTD, mask_BTS, positions_BT, **options)
        return x_BTD, None if extended is None else extended._replace(kv=kv), weights

    def logits(self, x_BTD: Array) -> Array:
        """Logits of each piece of the vocabulary, float32: logits_BTV."""
        check_width("x_BTD", x_BTD, self.config.d_model)
        logits_BTV = self.output.logits(x_BTD)
        return logits_BTV if self.output_bias is None else logits_BTV + self.output_bias[...]

    @property
    def output(self) -> Embedding:
        """The embedding table that computes the logits."""
        return self.output_embedding or self.embedding

    def init_cache(self, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None) -> Cache:
        """An empty cache for `rows` sequences with `beams` beams each and `length` positions per beam.

        `dtype`: type of keys and values; None = the model's dtype.
        """
        return empty_cache(self.config, rows, length, beams, dtype)
