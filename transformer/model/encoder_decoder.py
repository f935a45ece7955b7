"""The encoder-decoder Transformer of Vaswani et al. 2017: from source ids and target ids to logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PAD, ModelConfig, UserError
from . import hard_attention
from .cache import Cache, Memory, both_ways, check_cache, check_kv, empty_cache, past, placed
from .checks import (
    check_complete,
    check_flag,
    check_ids,
    check_key,
    check_mask,
    check_pair,
    check_positions,
    check_same_shape,
    check_sources,
    check_width,
)
from .initializers import constant
from .inputs import input_norm, inputs, position_table, shifted
from .layers import Dense, Embedding, dropout, fold
from .stack import ALL, RUN, Attended, Run, Stack, Weights, check_run, stacked


class EncoderDecoder(nnx.Module):
    """Encoder, decoder, and their embedding tables, which may be tied. A head may label the source's pieces.

    Id 0 is padding: it fills up the rows of a batch. No position attends to padding, and the loss ignores it.

    Shapes: B batch, S source length, T target length, D model, V vocabulary, M beams.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) if the config breaks a rule or its vocab_size is None."""
        check_complete(config)
        self.config, self.vocab_size = config, config.vocab_size
        # One module holds a tied table and offers both uses of it. Two modules would split the gradient in two.
        tied = config.tied_embeddings
        self.embedding = Embedding(config, rngs=rngs)
        outputs = config.output_size
        self.target_embedding = None if tied == "all" else Embedding(config, outputs, rngs=rngs)
        self.output_embedding = Embedding(config, outputs, rngs=rngs) if tied == "none" else None
        self.source_positions = position_table(config, rngs=rngs)
        self.target_positions = position_table(config, rngs=rngs)
        self.source_norm, self.target_norm = input_norm(config), input_norm(config)
        self.encoder = Stack(config, "encoder", rngs=rngs)
        self.decoder = Stack(config, "decoder", cross=True, rngs=rngs)
        self.output_bias = constant(0, outputs) if config.output_bias else None
        self.label_head = Dense(config, config.labels, rngs=rngs) if config.head == "token" else None

    def __call__(
        self,
        source_BS: Array,
        target_BT: Array,
        *,
        positions: tuple[Array, Array] | None = None,
        segments: tuple[Array, Array] | None = None,
        masks: tuple[Array | None, Array | None] | None = None,
        words: tuple[Array, Array] | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Array:
        """Return logits_BTV, float32: at position t, logits of the piece that follows `target_BT[:, :t + 1]`.

        `source_BS` and `target_BT` are integer ids, padded with 0 on the right. A source ends with eos; a target begins
        with bos. A `key` switches dropout on. For packed rows, which hold several sentences, give `segments` as
        (source, target): a segment number per position, the same for source and target of a pair. `positions`, too, is
        (source, target); None = counted in each segment from 0. `masks`: mask_BS for `encode` and mask_BTS for
        `hidden`, or None.
        `words`: with `model.hard_attention`, begins_BS for `encode` and passed_BT for `hidden`.

        Raises `UserError` (a ValueError) for wrong types or shapes. Outside `jax.jit` it also raises for ids outside
        the vocabulary, a target whose source is all padding, and positions beyond the learned ones.
        """
        return self._forced(source_BS, target_BT, positions, segments, masks, words, key, run)[0]

    def attention(
        self,
        source_BS: Array,
        target_BT: Array,
        *,
        positions: tuple[Array, Array] | None = None,
        segments: tuple[Array, Array] | None = None,
        masks: tuple[Array | None, Array | None] | None = None,
        words: tuple[Array, Array] | None = None,
        run: Run = RUN,
    ) -> tuple[Array, dict[str, Array]]:
        """Return the logits_BTV of `__call__`, and all attention weights of the same pass, float32.

        There is an array for each kind of attention, of shape (B, layers, heads, queries, keys): 'encoder' from source
        to source, 'decoder' from target to target, and 'cross' from target to source. `weights["cross"][b, l, n, t, s]`
        is how much of source piece s head n of layer l takes in, when the model predicts what follows
        `target_BT[b, :t + 1]`.

        The weights of a query sum to 1. They are exactly 0 at keys that the query may not attend to, and at queries
        that are padding. Arguments and errors are those of `__call__`. A fused attention kernel is not used.
        """
        options = (positions, segments, masks, words, None, run, ALL)
        logits_BTV, encoder, decoder = self._forced(source_BS, target_BT, *options)
        mask_BS, _ = check_pair("masks", masks)
        mask_BS = source_BS != PAD if mask_BS is None else jnp.broadcast_to(mask_BS, source_BS.shape)
        return logits_BTV, {
            "encoder": stacked([one.self_attention for one in encoder], mask_BS),
            "decoder": stacked([one.self_attention for one in decoder], target_BT != PAD),
            "cross": stacked([one.cross_attention for one in decoder], target_BT != PAD),
        }

    def _forced(
        self,
        source_BS: Array,
        target_BT: Array,
        positions: tuple[Array, Array] | None,
        segments: tuple[Array, Array] | None,
        masks: tuple[Array | None, Array | None] | None,
        words: tuple[Array, Array] | None,
        key: Array | None,
        run: Run,
        want_weights: Collection[Attended] = (),
    ) -> tuple[Array, tuple[Weights, ...], tuple[Weights, ...]]:
        """logits_BTV, the weights of each block of the encoder, and those of the decoder. See `__call__`."""
        check_run(run, key)
        check_ids("source_BS", source_BS, self.vocab_size)
        check_ids("target_BT", target_BT, self.config.output_size)
        sources, targets = source_BS.shape[0], target_BT.shape[0]  # not `len`: symbolic when exported
        if sources != targets:
            raise UserError(f"source_BS has {sources} rows and target_BT {targets}: give one target for each source")
        positions_BS, positions_BT = check_pair("positions", positions)
        segments_BS, segments_BT = check_pair("segments", segments)
        mask_BS, mask_BTS = check_pair("masks", masks)
        begins_BS, passed_BT = check_pair("words", words, "begins_BS, passed_BT")
        of_source = {"positions_BS": positions_BS, "segments_BS": segments_BS, "mask_BS": mask_BS}
        of_target = {"positions_BT": positions_BT, "segments_BT": segments_BT, "mask_BTS": mask_BTS}
        with jax.named_scope("encode"):
            options = {"key": fold(key, 0), "run": run, "want_weights": want_weights}
            x_BSD, encoder = self._encoded(source_BS, **of_source, **options)
            memory = self.remember(x_BSD, source_BS, **of_source, begins_BS=begins_BS)
        options = {**of_target, "passed_BT": passed_BT, "key": fold(key, 1), "run": run, "want_weights": want_weights}
        x_BTD, _, decoder = self._decoded(target_BT, memory, cache=None, at_B=None, **options)
        return self.logits(x_BTD), encoder, decoder

    @jax.named_scope("encode")
    def encode(
        self,
        source_BS: Array,
        *,
        positions_BS: Array | None = None,
        segments_BS: Array | None = None,
        mask_BS: Array | None = None,
        begins_BS: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Memory:
        """Run the encoder on source_BS and return the `Memory` that the decoder attends to.

        For packed rows, `segments_BS` numbers the sentences; `positions_BS` = None counts in each from 0. `mask_BS` is
        boolean, True = positions that may be attended to; None = all but padding. `begins_BS` is True at the first
        piece of each word; `model.hard_attention` needs it. A `key` switches dropout on. Raises the same errors as
        `__call__`.
        """
        options = {"positions_BS": positions_BS, "segments_BS": segments_BS, "mask_BS": mask_BS}
        x_BSD = self.encoder_states(source_BS, **options, key=key, run=run)
        return self.remember(x_BSD, source_BS, **options, begins_BS=begins_BS)

    def remember(
        self,
        x_BSD: Array,
        source_BS: Array,
        *,
        positions_BS: Array | None = None,
        segments_BS: Array | None = None,
        mask_BS: Array | None = None,
        begins_BS: Array | None = None,
    ) -> Memory:
        """The `Memory` of these encoder states. The other arguments are those of `encode`."""
        self._check_source(source_BS, positions_BS, segments_BS, mask_BS)
        check_width("x_BSD", x_BSD, self.config.d_model)
        if x_BSD.shape[:2] != source_BS.shape:
            raise UserError(f"x_BSD has the shape {x_BSD.shape} and source_BS {source_BS.shape}: give its own states")
        mask_BS = source_BS != PAD if mask_BS is None else jnp.broadcast_to(mask_BS, source_BS.shape)
        positions_BS = placed(positions_BS, segments_BS, source_BS.shape[1])
        positions_BS = jnp.broadcast_to(positions_BS, source_BS.shape)
        words_BSD = hard_attention.words(self.config, x_BSD, begins_BS, mask_BS, segments_BS)
        return Memory(self.decoder.memory(x_BSD), mask_BS, positions_BS, segments_BS, words_BSD)

    def encoder_states(
        self,
        source_BS: Array,
        *,
        positions_BS: Array | None = None,
        segments_BS: Array | None = None,
        mask_BS: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Array:
        """The encoder's output x_BSD, in model.dtype: one vector for each position of source_BS. See `encode`.

        Vectors at padding have no meaning.
        """
        return self._encoded(source_BS, positions_BS, segments_BS, mask_BS, key, run)[0]

    def _encoded(
        self,
        source_BS: Array,
        positions_BS: Array | None,
        segments_BS: Array | None,
        mask_BS: Array | None,
        key: Array | None,
        run: Run,
        want_weights: Collection[Attended] = (),
    ) -> tuple[Array, tuple[Weights, ...]]:
        """`encoder_states`, and the weights of each block."""
        check_run(run, key)
        self._check_source(source_BS, positions_BS, segments_BS, mask_BS)
        mask_BS = source_BS != PAD if mask_BS is None else mask_BS
        positions_BS = placed(positions_BS, segments_BS, source_BS.shape[1])
        mask_BTS = both_ways(self.config.attention("encoder").window, mask_BS, positions_BS, segments_BS)
        rows, learned = source_BS.shape[0], self.source_positions
        shifted_BS = shifted(self.config, positions_BS, rows, fold(key, 2))
        if learned is not None:
            check_positions("source_BS", source_BS, shifted_BS, len(learned[...]), source_BS != PAD)
        x_BSD = inputs(
            *(self.config, self.embedding, learned, source_BS, shifted_BS, fold(key, 0)), norm=self.source_norm
        )
        options = {"key": fold(key, 1), "want_weights": want_weights, "run": run}
        x_BSD, _, weights = self.encoder(x_BSD, mask_BTS, shifted_BS, **options)
        return x_BSD, weights

    def _check_source(
        self, source_BS: Array, positions_BS: Array | None, segments_BS: Array | None, mask_BS: Array | None
    ) -> None:
        check_ids("source_BS", source_BS, self.vocab_size)
        for name, given in (("positions_BS", positions_BS), ("segments_BS", segments_BS)):
            if given is not None:
                check_same_shape(name, given, source_BS)
        if mask_BS is not None:
            check_mask("mask_BS", mask_BS, source_BS.shape)

    def label_logits(self, x_BSD: Array, *, key: Array | None = None) -> Array:
        """Outputs of the head 'token' for these encoder states, float32: logits_BSL.

        A `key` switches dropout of the head's input on. Raises `UserError` if the model has no such head.
        """
        if self.label_head is None:
            raise UserError("model.head = 'none': such a model has no head for labels; give 'token'")
        check_key(key)
        check_width("x_BSD", x_BSD, self.config.d_model)
        return self.label_head(dropout(x_BSD, self.config.dropout, key))

    def decode(
        self, tokens_BT: Array, memory: Memory, **options: Any
    ) -> tuple[Array, Cache | None, tuple[Array | None, ...] | None]:
        """Return logits_BTV (float32), the new cache and the weights: `hidden` with its options, then `logits`."""
        x_BTD, cache, weights = self.hidden(tokens_BT, memory, **options)
        return self.logits(x_BTD), cache, weights

    def hidden(
        self,
        tokens_BT: Array,
        memory: Memory,
        *,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BTS: Array | None = None,
        passed_BT: Array | None = None,
        cache: Cache | None = None,
        at_B: Array | None = None,
        key: Array | None = None,
        want_weights: bool = False,
        run: Run = RUN,
    ) -> tuple[Array, Cache | None, tuple[Array | None, ...] | None]:
        """Run the decoder. Return x_BTD for `logits`, the new cache, and, if `want_weights`, the weights_BNTS of each
        block's cross-attention. The method `attention` gives all weights.

        Without a cache, tokens_BT are whole targets that begin with bos. With a cache (see `init_cache`), the tokens
        have positions `at_B`, `at_B + 1`, … and also attend to the earlier positions in the cache. `at_B` is one
        position for all sentences, or one per sentence of the cache; None = behind the pieces that the cache holds,
        which is wrong behind a padded prompt; outside `jax.jit`, a cache that holds some needs `at_B`. `tokens_BT` may
        have M times the rows of `memory`: then M neighbouring rows are the beams of one sentence. It has M times the
        rows of the cache if `init_cache` made the cache for M beams.

        `mask_BTS` replaces the causal mask, without a cache only. It is boolean, True = target position t may attend to
        target position s; one row may stand for all. `passed_BT` is the number of words that the target has passed at
        each position; `model.hard_attention` needs it.

        Raises the errors of `__call__`, and `UserError` if the cache has no room for the tokens.
        """
        check_flag("want_weights", want_weights)
        wanted = ("cross",) if want_weights else ()
        options = (positions_BT, segments_BT, mask_BTS, passed_BT, cache, at_B, key, run, wanted)
        x_BTD, extended, weights = self._decoded(tokens_BT, memory, *options)
        return x_BTD, extended, tuple(one.cross_attention for one in weights) if want_weights else None

    @jax.named_scope("decode")
    def _decoded(
        self,
        tokens_BT: Array,
        memory: Memory,
        positions_BT: Array | None,
        segments_BT: Array | None,
        mask_BTS: Array | None,
        passed_BT: Array | None,
        cache: Cache | None,
        at_B: Array | None,
        key: Array | None,
        run: Run,
        want_weights: Collection[Attended],
    ) -> tuple[Array, Cache | None, tuple[Weights, ...]]:
        """`hidden`, with the weights of each block that `want_weights` names."""
        check_run(run, key)
        self._check_decoding(tokens_BT, memory, cache, at_B, positions_BT, segments_BT, mask_BTS)
        rows, T = tokens_BT.shape
        window = self.config.attention("decoder").window
        positions_BT, mask_BTS, extended = past(T, window, positions_BT, segments_BT, cache, at_B, mask_BTS)
        # M * T queries per sentence.
        query_positions = jnp.broadcast_to(positions_BT, (rows, T)).reshape(memory.mask_BS.shape[0], -1)
        memory_mask_BTS = memory.mask_BTS(query_positions, segments_BT, self.config.attention("cross").window)
        learned, positions_BT = self.target_positions, shifted(self.config, positions_BT, rows, fold(key, 2))
        if learned is not None:
            check_positions("tokens_BT", tokens_BT, positions_BT, len(learned[...]), tokens_BT != PAD)
        embedding = self.target_embedding or self.embedding
        options = (self.config, embedding, learned, tokens_BT, positions_BT, fold(key, 0))
        word_BTD = hard_attention.next_word(self.config, memory.words_BSD, tokens_BT, passed_BT)
        x_BTD, kv, weights = self.decoder(
            inputs(*options, norm=self.target_norm, more_BTD=word_BTD),
            mask_BTS,
            positions_BT,
            memory=memory.kv,
            memory_mask_BTS=memory_mask_BTS,
            cache=cache,
            key=fold(key, 1),
            want_weights=want_weights,
            run=run,
        )
        if extended is not None:
            extended = extended._replace(kv=kv)
        return x_BTD, extended, weights

    def logits(self, x_BTD: Array) -> Array:
        """Logits of each piece of the vocabulary, float32: logits_BTV."""
        check_width("x_BTD", x_BTD, self.config.d_model)
        logits_BTV = self.output.logits(x_BTD)
        return logits_BTV if self.output_bias is None else logits_BTV + self.output_bias[...]

    @property
    def output(self) -> Embedding:
        """The embedding table that computes the logits."""
        return self.output_embedding or self.target_embedding or self.embedding

    def init_cache(self, rows: int, length: int, beams: int = 1, dtype: jnp.dtype | None = None) -> Cache:
        """An empty cache for `rows` sentences with `beams` beams each and `length` positions per beam.

        `dtype`: type of keys and values; None = the model's dtype.
        """
        return empty_cache(self.config, rows, length, beams, dtype)

    def _check_decoding(
        self,
        tokens_BT: Array,
        memory: Memory,
        cache: Cache | None,
        at_B: Array | None,
        positions_BT: Array | None,
        segments_BT: Array | None,
        mask_BTS: Array | None,
    ) -> None:
        """Raise `UserError` for arguments that `hidden` does not accept."""
        check_ids("tokens_BT", tokens_BT, self.config.output_size)
        if not isinstance(memory, Memory):
            raise UserError(f"memory is a {type(memory).__name__}: give what `encode` returns")
        check_sources(memory.mask_BS, tokens_BT)
        check_kv("memory", memory.kv, self.config, "cross", *memory.mask_BS.shape)
        if (segments_BT is None) != (memory.segments_BS is None):
            raise UserError("segments: give both source and target segments, or neither; else sentences see each other")
        check_cache(self.config, tokens_BT, cache, at_B, positions_BT, segments_BT, mask_BTS)


def beside_a_decoder(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The parameters of an encoder alone, without its head, with the names that they have in an `EncoderDecoder`.

    There is text of one type alone, so the embeddings take up the row of the first type.
    """
    names = {name: name for name in ("embedding", "encoder")}
    names |= {"positions": "source_positions", "input_norm": "source_norm"}
    named = {names[name]: node for name, node in params.items() if name in names}
    if "token_types" in params:
        scale = config.d_model**0.5 if config.embedding_scale else 1.0
        named["embedding"] = {"table": params["embedding"]["table"] + params["token_types"][0] / scale}
    return named
