"""Forced decoding: what a model thinks of given translations, piece by piece."""

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
    """What a model thinks of a given translation."""

    pieces: tuple[str, ...]
    """Its pieces, eos at the end."""
    log_probs: tuple[float, ...]
    """The log-probability of each piece after those before it, in nats."""
    score: float
    """Their sum over the length penalty: what beam search would have ranked it by."""
    source_pieces: tuple[str, ...]
    """The pieces of the source, eos at the end."""
    alignment: tuple[int, ...]
    """For each piece the number, from 0, of the source piece that it looks at most (see `Translator.score`)."""


@dataclass(frozen=True)
class Scorer:
    """Scores pairs of pieces without eos under one model, or under several whose probabilities are averaged."""

    models: tuple[Model, ...]
    params: tuple[Params, ...]
    tokenizer: Tokenizer
    batcher: Batcher
    options: Options
    """Its length penalty is that of the scores."""
    positions: float
    """The most positions that the models have."""

    def score(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        """What the models think of each target as the translation of its source."""
        results: list[Any] = [None] * len(sources)
        # At least 1 piece and eos, so that an empty sentence is scored like any other.
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
        """`forced`, in parts where the whole does not fit into memory."""

        def part(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            placed = self.batcher.put(source_BS[rows], target_BT[rows])
            return jax.tree.map(np.asarray, forced(self.params, *placed, models=self.models))

        parts = self.batcher.in_parts(part, len(source_BS))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@partial(jax.jit, static_argnames="models")
def forced(
    params: tuple[Params, ...], source_BS: Array, target_BT: Array, *, models: tuple[Model, ...]
) -> tuple[Array, Array]:
    """Log-probability of each target piece (B, T), averaged over the models' probabilities, and the source position
    (B, T) that it looks at most."""
    input_BT = jnp.concatenate([jnp.full_like(target_BT[:, :1], BOS), target_BT[:, :-1]], axis=1)
    log_probs, alignment_BT = [], None
    for model, parameters in zip(models, params, strict=True):
        bound = model.bind(parameters)
        logits_BTV, _, weights = bound.decode(input_BT, bound.encode(source_BS), want_weights=alignment_BT is None)
        if alignment_BT is None:
            alignment_BT = jnp.argmax(weights[max(0, len(weights) - 2)].mean(axis=1), axis=-1)
        # As the search sees them: see `engine.next_log_probs`.
        log_probs_BTV = jax.nn.log_softmax(logits_BTV)
        log_probs.append(jnp.take_along_axis(log_probs_BTV, target_BT[..., None], axis=2)[..., 0])
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs)), alignment_BT
