"""The likeliest pieces in the place of each mask of a text, under a masked language model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import MASKED_HEADS, MaskedConfig, UserError, require_workdir, shown
from transformer.data.given import strings
from transformer.inference.batches import Batcher, on_all_devices, padded_lengths
from transformer.inference.ensemble import check_leaves, check_members
from transformer.inference.pieces import (
    MAX_LINES,
    encoder_vocabulary,
    framed,
    require_encoder_vocabulary,
    warn_of_unknown,
)
from transformer.inference.tally import Tally
from transformer.model import Model, Params, build
from transformer.model.checks import check_integer
from transformer.model.rounding import in_type

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.wordpiece import EncoderVocabulary

MASK = "[MASK]"
"""Stands for a mask in a text, whatever the vocabulary; the vocabulary's own name of it does, too."""


class Candidate(NamedTuple):
    """A piece in the place of a mask."""

    piece: str
    probability: float


class Filler:
    """Fills masks with one masked language model. `tally` counts the texts so far."""

    def __init__(self, model: Model, params: Params, vocabulary: EncoderVocabulary):
        """Raises `UserError` if the model is of another kind, or if its vocabulary has another size."""
        if not isinstance(model, Model) or model.config.head not in MASKED_HEADS:
            raise UserError(f"model = {shown(model)}: give an encoder alone with a head for masked pieces")
        require_encoder_vocabulary(vocabulary)
        if model.config.vocab_size != vocabulary.size:
            raise UserError(
                f"the model has a vocabulary of {model.config.vocab_size} pieces, and the given one has "
                f"{vocabulary.size}; give the vocabulary that it was trained with"
            )
        check_members(model, params, ())
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.tally = Tally()
        self._batcher = Batcher(params, batch_sentences=64, batch_tokens=16_384)

    @classmethod
    def load(cls, workdir: str, checkpoint: str | int | None = None) -> Filler:
        """The filler of a workdir. `checkpoint`: as in `transformer.load`."""
        from transformer.checkpoint import Checkpoints

        return Checkpoints(workdir).read(checkpoint, cls.of)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Filler:
        """The filler of a checkpoint. Raises `UserError` if its model has no head for masked pieces."""
        workdir, config = checkpoint.path.parent.parent, checkpoint.config
        require_masked_head(config, workdir)
        vocabulary = encoder_vocabulary(checkpoint)
        model, params = in_type(config.model, checkpoint.params(), "auto")
        return cls(build(model.with_vocabulary(vocabulary.size)), on_all_devices(params), vocabulary)

    def fill(self, given: Sequence[str], top: int = 5, *, first_line: int = 1) -> list[list[list[Candidate]]]:
        """For each text, and each "[MASK]" in it, the `top` likeliest pieces, likeliest first.

        The probabilities are those of each mask alone. A text that is longer than the model's positions loses its end,
        with a warning that names its line, counted from `first_line`; a mask in that end has no pieces. Nor
        has a mask for which the model's numbers are not finite; a warning names the first such line and counts them.
        Raises `UserError` for wrong arguments.
        """
        check_leaves(self.params)
        check_integer("top", top, 1, self.vocabulary.size)
        texts = strings("texts", given)
        check_integer("first_line", first_line, 1, MAX_LINES - len(texts))
        pieces = [with_masks(self.vocabulary, text) for text in texts]
        rows = framed(pieces, self.vocabulary, self._positions, first_line)
        warn_of_unknown(self.vocabulary, texts, rows, range(first_line, first_line + len(texts)))
        lengths = [len(row) if self.vocabulary.mask in row else 0 for row in rows]
        results: list[list[list[Candidate]]] = [[] for _ in rows]
        most = max(lengths, default=0)
        longest = min(next(n for n in padded_lengths() if n >= most), self._positions or most)
        for batch in self._batcher.batches(lengths, longest, few=self._batcher.few(lengths)):
            found = self._filled(batch.rows, batch.length, [rows[i] for i in batch.indices], top)
            for i, of_text in zip(batch.indices, found, strict=True):
                results[i] = of_text
        # The masks so far are those that the model has seen: each has candidates, or its numbers are not finite.
        self.tally.count([0.0 if all(found) else math.nan if found else None for found in results], first_line)
        for found, ids in zip(results, pieces, strict=True):
            found += [[] for _ in range(ids.count(self.vocabulary.mask) - len(found))]
        return results

    @property
    def _positions(self) -> int | None:
        """The most pieces of a text; None = no limit."""
        config = self.model.config
        return config.max_positions if config.positions == "learned" else None

    def _filled(self, count: int, length: int, rows: Sequence[list[int]], top: int) -> list[list[list[Candidate]]]:
        """The candidates of each of these rows, from a batch of `count` rows of this length."""
        places = [[t for t, id in enumerate(row) if id == self.vocabulary.mask] for row in rows]
        most = 1 << (max(map(len, places)) - 1).bit_length()
        text_BT, place_BX = np.full((count, length), self.vocabulary.pad, np.int32), np.zeros((count, most), np.int32)
        attended_BT = np.zeros((count, length), bool)
        for b, (row, at) in enumerate(zip(rows, places, strict=True)):
            text_BT[b, : len(row)], attended_BT[b, : len(row)], place_BX[b, : len(at)] = row, True, at

        def part(some: slice) -> list[tuple[np.ndarray, np.ndarray]]:
            arrays = self._batcher.put(text_BT[some], attended_BT[some], place_BX[some])
            found = likeliest(self.params, *arrays, model=self.model, top=top)
            return list(zip(*map(np.asarray, found), strict=True))

        found = [row for some in self._batcher.in_parts(part, count) for row in some]
        return [
            [
                [Candidate(self.vocabulary.name(i), p) for i, p in zip(ids.tolist(), of_mask.tolist(), strict=True)]
                if np.isfinite(of_mask).all()
                else []
                for ids, of_mask in zip(ids_XK[: len(at)], probabilities_XK[: len(at)], strict=True)
            ]
            for at, (ids_XK, probabilities_XK) in zip(places, found, strict=False)
        ]


def with_masks(vocabulary: EncoderVocabulary, text: str) -> list[int]:
    """The ids of a text, with the mask for each of its names."""
    parts = re.split("|".join(map(re.escape, (MASK, vocabulary.name(vocabulary.mask)))), text.replace("\n", " "))
    first, *more = vocabulary.encode_lines(parts)
    return [*first, *(id for part in more for id in (vocabulary.mask, *part))]


def require_masked_head(config: Any, where: object) -> None:
    """Raise `UserError` unless this is the config of a model that predicts masked pieces. `where`: its workdir."""
    require_workdir(config, where, MaskedConfig)
    if config.model.head not in MASKED_HEADS:
        raise UserError(
            f"{where}: its model.head is {config.model.head!r}, which does not predict masked pieces; "
            f"use: python -m transformer embed {where}"
        )


@partial(jax.jit, static_argnames=("model", "top"))
def likeliest(
    params: Params, text_BT: Array, attended_BT: Array, place_BX: Array, *, model: Model, top: int
) -> tuple[Array, Array]:
    """The K = `top` likeliest pieces at each place, and their probabilities, likeliest first: both (B, X, K)."""
    module = model.bind(params)
    x_BTD = module.states(text_BT, mask_BT=attended_BT)
    x_BXD = jnp.take_along_axis(x_BTD, place_BX[:, :, None], axis=1)

    def at_place(x_BD: Array) -> tuple[Array, Array]:
        log_probs_BV = jax.nn.log_softmax(module.masked_logits(x_BD[:, None])[:, 0])
        values_BK, ids_BK = jax.lax.top_k(log_probs_BV, top)
        return ids_BK, jnp.exp(values_BK)

    ids_XBK, probabilities_XBK = jax.lax.map(at_place, x_BXD.swapaxes(0, 1))
    return ids_XBK.swapaxes(0, 1), probabilities_XBK.swapaxes(0, 1)
