"""Vectors of texts: the states of an encoder alone, averaged over the pieces of a text, or that of its first piece."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import FinetuneConfig, MaskedConfig, UserError, require_workdir, shown
from transformer.data.given import strings
from transformer.inference.batches import Batch, Batcher, on_all_devices, padded_lengths
from transformer.inference.ensemble import check_leaves, check_members
from transformer.inference.pieces import (
    MAX_LINES,
    encoder_vocabulary,
    framed,
    require_encoder_vocabulary,
    warn_of_unknown,
)
from transformer.model import Model, Params
from transformer.model.checks import check_flag, check_integer

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.wordpiece import EncoderVocabulary

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
BATCH_TEXTS, BATCH_TOKENS = 256, 16_384


class Embedder:
    """Computes vectors of texts with an encoder alone, such as an imported BERT.

    Texts of similar length are computed together. A vector does not depend on the other texts, but for rounding.
    """

    def __init__(
        self, model: Model, params: Params, vocabulary: EncoderVocabulary, *, longest: int | None = None
    ) -> None:
        """`longest`: the most pieces of a text, the special ones included; None = as many as the model has learned
        positions. Raises `UserError` if the model has a decoder, or for a vocabulary of another kind or size."""
        if not isinstance(model, Model) or model.config.decoder_layers:
            raise UserError(f"model = {shown(model)}: give an encoder alone, a model with decoder_layers = 0")
        require_encoder_vocabulary(vocabulary)
        if vocabulary.size > model.config.vocab_size:
            raise UserError(
                f"the vocabulary has {vocabulary.size} pieces, and the model {model.config.vocab_size}; give the "
                "vocabulary that it was trained with"
            )
        check_members(model, params, ())
        if longest is not None:
            check_integer("longest", longest, 3)
        learned = model.config.max_positions if model.config.positions == "learned" else None
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.longest = min((n for n in (longest, learned) if n is not None), default=None)
        """The most pieces of a text, the special ones included; None = no limit."""
        self.batcher = Batcher(params, batch_sentences=BATCH_TEXTS, batch_tokens=BATCH_TOKENS)

    @classmethod
    def load(cls, workdir: str | os.PathLike[str], checkpoint: str | int | None = None) -> Embedder:
        """The embedder of a workdir. `checkpoint`: as in `transformer.load`. Texts are cut to `data.context` pieces.

        If there are several devices, the rows of a batch are cut over all of them.
        """
        from transformer.checkpoint import Checkpoints

        return Checkpoints(workdir).read(checkpoint, cls.of)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Embedder:
        """The embedder of an open checkpoint."""
        config, workdir = checkpoint.config, checkpoint.path.parent.parent
        require_workdir(config, workdir, MaskedConfig, FinetuneConfig)
        vocabulary, params = encoder_vocabulary(checkpoint), on_all_devices(checkpoint.params())
        return cls(checkpoint.model, params, vocabulary, longest=config.data.context)

    def embed(
        self, texts: Sequence[str], *, pooling: Pooling = "mean", normalize: bool = False, first_line: int = 1
    ) -> np.ndarray:
        """The vectors of texts: float32 (texts, d_model).

        `pooling`: 'mean' = the mean of the states of all pieces of a text, the special ones at its ends included; 'cls'
        = the state of the first one. `normalize`: scale each vector to length 1, so that the product of two is their
        cosine. A text that is too long loses its end, with a warning that names its line, counted from `first_line`.
        Raises `UserError` for wrong arguments, and if the model gives numbers that are not finite.
        """
        check_flag("normalize", normalize)
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise UserError(f"pooling = {shown(pooling)}: must be one of {', '.join(POOLINGS)}")
        check_leaves(self.params)
        rows = self.encode(texts, first_line)
        vectors_XD = np.zeros((len(rows), self.model.config.d_model), np.float32)
        lengths = [len(row) for row in rows]
        most = max(lengths, default=1)
        longest = min(next(n for n in padded_lengths() if n >= most), self.longest or math.inf)
        for batch in self.batcher.batches(lengths, longest):
            vectors_XD[batch.indices] = self._pooled(batch, rows, pooling)[: len(batch.indices)]
        if not (finite_X := np.isfinite(vectors_XD).all(axis=1)).all():
            raise UserError(
                f"line {first_line + int(np.argmin(finite_X))}: its vector is not finite: the parameters of this model "
                "are broken; choose another checkpoint"
            )
        if normalize:
            vectors_XD /= np.maximum(np.linalg.norm(vectors_XD, axis=1, keepdims=True), 1e-12)
        return vectors_XD

    def encode(self, given: Sequence[str], first_line: int = 1) -> list[list[int]]:
        """The ids of each text between the special ones at its ends, cut to `longest`, with a warning.

        Warns of unknown text, too.
        """
        given = strings("texts", given)
        check_integer("first_line", first_line, 1, MAX_LINES - len(given))
        rows = framed(self.vocabulary.encode_lines(given), self.vocabulary, self.longest, first_line)
        warn_of_unknown(self.vocabulary, given, rows, range(first_line, first_line + len(given)))
        return rows

    def _pooled(self, batch: Batch, rows: Sequence[Sequence[int]], pooling: Pooling) -> np.ndarray:
        """`pooled` of a batch, in parts if the whole batch does not fit into memory."""
        tokens_BT = np.full((batch.rows, batch.length), self.vocabulary.pad, np.int32)
        lengths_B = np.ones(batch.rows, np.int32)  # of rows that fill up the batch, one piece is seen
        for b, i in enumerate(batch.indices):
            lengths_B[b] = len(rows[i])
            tokens_BT[b, : len(rows[i])] = rows[i]

        def part(of: slice) -> np.ndarray:
            placed: Any = self.batcher.put(tokens_BT[of], lengths_B[of])
            return np.asarray(pooled(self.params, *placed, model=self.model, pooling=pooling))

        return np.concatenate(self.batcher.in_parts(part, batch.rows))


@partial(jax.jit, static_argnames=("model", "pooling"))
def pooled(params: Params, tokens_BT: Array, lengths_B: Array, *, model: Model, pooling: Pooling) -> Array:
    """The vectors of texts padded on the right, float32: x_BD. `lengths_B`: pieces of each text, at least 1."""
    mask_BT = jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    x_BTD = model.bind(params).states(tokens_BT, mask_BT=mask_BT).astype(jnp.float32)
    if pooling == "cls":
        return x_BTD[:, 0]
    return jnp.sum(x_BTD, axis=1, where=mask_BT[..., None]) / lengths_B[:, None]
