"""Forced decoding: the log-probability of each piece of given translations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import BOS, EOS, PAD
from transformer.inference.batches import Batcher, padded_lengths
from transformer.inference.beam_search import Options
from transformer.model import Model, Params

if TYPE_CHECKING:
    from transformer.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scored:
    """The scores of a given translation."""

    pieces: tuple[str, ...]
    """The pieces of the translation, eos at the end."""
    log_probs: tuple[float, ...]
    """The log-probability of each piece given those before it, in nats."""
    score: float
    """The sum of the log-probabilities divided by the length penalty, as beam search ranks hypotheses."""
    source_pieces: tuple[str, ...]
    """The pieces of the source, eos at the end."""
    alignment: tuple[int, ...]
    """For each piece, the index of the source piece that gets most of its attention (see `Translator.score`)."""


@dataclass(frozen=True)
class Scorer:
    """Scores pairs of piece lists under one model, or under several with averaged probabilities."""

    models: tuple[Model, ...]
    params: tuple[Params, ...]
    tokenizer: Tokenizer
    batcher: Batcher
    options: Options
    """The length penalty of the scores is taken from here."""
    positions: float
    """The largest number of positions of the models; inf if they are not learned."""

    def score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        """Score each target as the translation of its source. All are pieces without eos."""
        results: list[Any] = [None] * len(sources)
        # At least 1 piece and eos, because the batcher leaves out sequences of length 0.
        lengths = [max(1, len(s), len(t)) + 1 for s, t in zip(sources, targets, strict=True)]
        longest = max(lengths, default=2)
        longest = min(next(n for n in padded_lengths() if n >= longest), self.positions)
        for batch in self.batcher.batches(lengths, longest):
            source_BS, target_BT = (batch.filled(side, EOS, PAD) for side in (sources, targets))
            log_probs_BT, alignment_BT = self._forced(source_BS, target_BT)
            for row, i in enumerate(batch.indices):
                n = len(targets[i]) + 1
                results[i] = Scored(
                    tuple(self.tokenizer.piece(piece) for piece in target_BT[row, :n].tolist()),
                    tuple(log_probs_BT[row, :n].tolist()),
                    float(self.options.score(log_probs_BT[row, :n].sum(), n)),
                    tuple(self.tokenizer.piece(piece) for piece in [*sources[i], EOS]),
                    tuple(alignment_BT[row, :n].tolist()),
                )
        return results

    def _forced(self, source_BS: np.ndarray, target_BT: np.ndarray) -> list[np.ndarray]:
        """`forced`, in parts if the whole batch does not fit into memory."""

        def part(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            placed = self.batcher.put(source_BS[rows], target_BT[rows])
            return jax.tree.map(np.asarray, forced(self.params, *placed, models=self.models))

        parts = self.batcher.in_parts(part, len(source_BS))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@partial(jax.jit, static_argnames="models")
def forced(
    params: tuple[Params, ...], source_BS: Array, target_BT: Array, *, models: tuple[Model, ...]
) -> tuple[Array, Array]:
    """(B, T) each: the log-probability of each target piece, from the probabilities averaged over the models, and the
    source position that gets most attention when the piece is predicted."""
    input_BT = jnp.concatenate([jnp.full_like(target_BT[:, :1], BOS), target_BT[:, :-1]], axis=1)
    log_probs, alignment_BT = [], None
    for model, parameters in zip(models, params, strict=True):
        bound = model.bind(parameters)
        logits_BTV, _, weights = bound.decode(input_BT, bound.encode(source_BS), want_weights=alignment_BT is None)
        if alignment_BT is None:
            alignment_BT = jnp.argmax(weights[max(0, len(weights) - 2)].mean(axis=1), axis=-1)
        # The same log-probabilities as in the search: see `programs.next_log_probs`.
        log_probs_BTV = jax.nn.log_softmax(logits_BTV)
        log_probs.append(jnp.take_along_axis(log_probs_BTV, target_BT[..., None], axis=2)[..., 0])
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs)), alignment_BT
