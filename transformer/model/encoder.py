"""The encoder alone, with the heads of BERT (Devlin et al. 2019): vectors and outputs for whole texts and their pieces.

Shapes: B batch, T length, D model, V vocabulary, L labels, X chosen positions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import LABEL_HEADS, MASKED_HEADS, POOLED_HEADS, ModelConfig, UserError
from .cache import both_ways, placed
from .checks import check_complete, check_ids, check_key, check_mask, check_positions, check_same_shape, check_width
from .initializers import constant
from .inputs import input_norm, inputs, position_table, shifted, type_rows, type_table
from .layers import ACTIVATIONS, Dense, Embedding, LayerNorm, dropout, fold
from .stack import RUN, Attended, Run, Stack, Weights, check_run, stacked

Part = TypeVar("Part")


class Encoder(nnx.Module):
    """A stack of blocks whose positions see each other in both directions, its embeddings, and one of BERT's heads.

    No id is padding here: the caller gives a mask. Where `head` is 'none', 'pretraining' or 'sequence', a pooler makes
    one vector of the state of the first piece ([CLS] in BERT).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Raises `UserError` (a ValueError) if the config breaks a rule, or its vocab_size or a needed size is None."""
        check_complete(config)
        c, D = config, config.d_model
        self.config, self.vocab_size = config, config.vocab_size
        self.embedding = Embedding(config, rngs=rngs)
        self.positions = position_table(config, rngs=rngs)
        self.token_types = type_table(config, rngs=rngs)
        self.input_norm = input_norm(config)
        self.encoder = Stack(config, "encoder", rngs=rngs)
        self.pooler = Dense(config, D, rngs=rngs) if c.head in POOLED_HEADS else None
        masked = c.head in MASKED_HEADS
        self.masked_head = Dense(config, D, rngs=rngs) if masked else None
        self.masked_norm = LayerNorm(config) if masked else None
        self.output_embedding = Embedding(config, rngs=rngs) if masked and c.tied_embeddings == "none" else None
        self.output_bias = constant(0, c.vocab_size) if masked and c.output_bias else None
        self.next_sentence_head = Dense(config, 2, rngs=rngs) if c.head == "pretraining" else None
        self.label_head = Dense(config, c.labels, rngs=rngs) if c.head in LABEL_HEADS else None

    def __call__(
        self,
        tokens_BT: Array,
        *,
        types_BT: Array | None = None,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BT: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Array | tuple[Array, Array]:
        """The outputs of `config.head`. Arguments and errors are those of `states`.

        'none': the states x_BTD, and the pooled vectors x_BD. 'masked': logits_BTV. 'pretraining': logits_BTV, and
        logits_B2 of whether the second text is the next one. 'sequence': logits_BL. 'token': logits_BTL.
        """
        check_run(run, key)
        given = {"types_BT": types_BT, "positions_BT": positions_BT, "segments_BT": segments_BT, "mask_BT": mask_BT}
        return self._outputs(self.states(tokens_BT, **given, key=fold(key, 0), run=run), fold(key, 1))

    def attention(
        self,
        tokens_BT: Array,
        *,
        types_BT: Array | None = None,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BT: Array | None = None,
        run: Run = RUN,
    ) -> tuple[Array | tuple[Array, Array], dict[str, Array]]:
        """Return the outputs of `__call__`, and {'encoder': weights_BLNTS}, all attention weights of the same pass.

        Their shape is (B, layers, heads, queries, keys): `weights["encoder"][b, l, n, t, s]` is how much of piece s
        piece t takes in, by head n of layer l. The weights of a query sum to 1. They are exactly 0 at keys that it may
        not attend to, and at queries where `mask_BT` is False. Arguments and errors are those of `__call__`. A fused
        attention kernel is not used.
        """
        x_BTD, weights = self._encoded(
            tokens_BT, types_BT, positions_BT, segments_BT, mask_BT, None, run, want_weights=("self",)
        )
        seen_BT = None if mask_BT is None else jnp.broadcast_to(mask_BT, tokens_BT.shape)
        return self._outputs(x_BTD, None), {"encoder": stacked([one.self_attention for one in weights], seen_BT)}

    def _outputs(self, x_BTD: Array, key: Array | None) -> Array | tuple[Array, Array]:
        """The outputs of `config.head` for these states. A `key` switches dropout of the head's input on."""
        if self.label_head is not None:
            return self.label_logits(x_BTD, key=key)
        if self.masked_head is None:
            return x_BTD, self.pooled(x_BTD)
        logits_BTV = self.masked_logits(x_BTD)
        return logits_BTV if self.next_sentence_head is None else (logits_BTV, self.next_sentence_logits(x_BTD))

    def states(
        self,
        tokens_BT: Array,
        *,
        types_BT: Array | None = None,
        positions_BT: Array | None = None,
        segments_BT: Array | None = None,
        mask_BT: Array | None = None,
        key: Array | None = None,
        run: Run = RUN,
    ) -> Array:
        """The encoder's output x_BTD, in model.dtype: one vector for each position of the ids tokens_BT.

        `types_BT`: the token type of each piece, such as 0 in the first text and 1 in the second; None = 0 everywhere.
        `mask_BT` is boolean, True = positions that may be attended to; None = all. Vectors at other positions have no
        meaning. For packed rows, `segments_BT` numbers the texts; `positions_BT` = None counts in each from 0. A `key`
        switches dropout on.

        Raises `UserError` (a ValueError) for wrong types or shapes. Outside `jax.jit` it also raises for ids outside
        the vocabulary or the token types, and for positions beyond the learned ones.
        """
        return self._encoded(tokens_BT, types_BT, positions_BT, segments_BT, mask_BT, key, run)[0]

    @jax.named_scope("encode")
    def _encoded(
        self,
        tokens_BT: Array,
        types_BT: Array | None,
        positions_BT: Array | None,
        segments_BT: Array | None,
        mask_BT: Array | None,
        key: Array | None,
        run: Run,
        want_weights: Collection[Attended] = (),
    ) -> tuple[Array, tuple[Weights, ...]]:
        """`states`, and the weights of each block that `want_weights` names."""
        check_run(run, key)
        check_ids("tokens_BT", tokens_BT, self.vocab_size)
        self._check_types(types_BT, tokens_BT)
        for name, given in (("positions_BT", positions_BT), ("segments_BT", segments_BT)):
            if given is not None:
                check_same_shape(name, given, tokens_BT)
        rows, T = tokens_BT.shape
        mask_BT = jnp.ones((1, T), bool) if mask_BT is None else mask_BT
        check_mask("mask_BT", mask_BT, tokens_BT.shape)
        positions_BT = placed(positions_BT, segments_BT, T)
        mask_BTS = both_ways(self.config.attention("encoder").window, mask_BT, positions_BT, segments_BT)
        positions_BT = shifted(self.config, positions_BT, rows, fold(key, 2))
        if self.positions is not None:
            check_positions("tokens_BT", tokens_BT, positions_BT, len(self.positions[...]), mask_BT)
        x_BTD = inputs(
            *(self.config, self.embedding, self.positions, tokens_BT, positions_BT, fold(key, 0)),
            norm=self.input_norm,
            more_BTD=None if self.token_types is None else type_rows(self.token_types, types_BT),
        )
        options = {"key": fold(key, 1), "want_weights": want_weights, "run": run}
        x_BTD, _, weights = self.encoder(x_BTD, mask_BTS, positions_BT, **options)
        return x_BTD, weights

    @jax.named_scope("pool")
    def pooled(self, x_BTD: Array) -> Array:
        """tanh(W x + b) of the first of the states x_BTD, in its type: x_BD."""
        pooler = self._part(self.pooler, "pooler", POOLED_HEADS)
        check_width("x_BTD", x_BTD, self.config.d_model)
        return jnp.tanh(pooler(x_BTD[:, 0])).astype(x_BTD.dtype)

    @jax.named_scope("masked_head")
    def masked_hidden(self, x_BXD: Array) -> Array:
        """The masked-LM head up to its product with the table: norm(activation(W x + b)), x_BXD in the type of x_BXD.

        `x_BXD`: states at any positions, such as the masked ones. A loss takes this, `output.table` and `output_bias`,
        and never stores the logits of all pieces.
        """
        head = self._part(self.masked_head, "masked-LM head", MASKED_HEADS)
        check_width("x_BXD", x_BXD, self.config.d_model)
        return self.masked_norm(ACTIVATIONS[self.config.activation](head(x_BXD)).astype(x_BXD.dtype))

    def masked_logits(self, x_BXD: Array) -> Array:
        """Logits of each piece of the vocabulary at the positions of these states, float32: logits_BXV."""
        logits_BXV = self.output.logits(self.masked_hidden(x_BXD))
        return logits_BXV if self.output_bias is None else logits_BXV + self.output_bias[...]

    @property
    def output(self) -> Embedding:
        """The embedding table that computes the logits of pieces."""
        return self.output_embedding or self.embedding

    def next_sentence_logits(self, x_BTD: Array) -> Array:
        """Logits of 'the second text follows the first' and 'it does not', from the states; float32: logits_B2."""
        head = self._part(self.next_sentence_head, "next-sentence head", ("pretraining",))
        return head(self.pooled(x_BTD))

    def label_logits(self, x_BTD: Array, *, key: Array | None = None) -> Array:
        """Outputs of the head 'sequence', logits_BL, or 'token', logits_BTL, from the states; float32.

        A `key` switches dropout of the head's input on.
        """
        head = self._part(self.label_head, "head for labels", LABEL_HEADS)
        check_key(key)
        check_width("x_BTD", x_BTD, self.config.d_model)
        x = x_BTD if self.pooler is None else self.pooled(x_BTD)
        return head(dropout(x, self.config.dropout, key))

    def _part(self, part: Part | None, name: str, heads: tuple[str, ...]) -> Part:
        """The part of the model. Raises `UserError` if the model was built without it."""
        if part is None:
            raise UserError(
                f"model.head = {self.config.head!r}: such a model has no {name}; models with one of these have: "
                f"{', '.join(heads)}"
            )
        return part

    def _check_types(self, types_BT: Array | None, tokens_BT: Array) -> None:
        if types_BT is None:
            return
        if self.token_types is None:
            raise UserError("types_BT: this model has no token types (model.token_types = 0); leave it out")
        check_same_shape("types_BT", types_BT, tokens_BT)
        check_ids("types_BT", types_BT, self.config.token_types, "token_types")
