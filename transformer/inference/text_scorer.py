"""The log-probability of each piece of given texts under a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.inference.batches import padded_lengths
from transformer.model import Model, Params

if TYPE_CHECKING:
    from transformer.data.vocabularies import Vocabulary
    from transformer.inference.ensemble import Ensemble


@dataclass(frozen=True)
class ScoredText:
    """The scores of a given text."""

    pieces: tuple[str, ...]
    """Printable names of its pieces."""
    log_probs: tuple[float | None, ...]
    """The log-probability (nats) of each piece given those before it. None for the first piece if the model was not
    trained on documents, so that nothing precedes it."""

    @property
    def log_prob(self) -> float:
        """Their sum."""
        return math.fsum(each for each in self.log_probs if each is not None)


@dataclass(frozen=True)
class TextScorer:
    """Scores lists of pieces under one model, or under several with averaged probabilities."""

    ensemble: Ensemble
    vocabulary: Vocabulary
    documents: bool
    """Whether the begin of a document precedes each text."""
    context: float
    """The most pieces that the models see at once."""

    def score(self, texts: Sequence[Sequence[int]]) -> list[ScoredText]:
        """Score each text, given as its pieces."""
        start = [self.vocabulary.begin] if self.documents else []
        rows = [[*start, *text] for text in texts]
        results: list[Any] = [ScoredText((), ())] * len(texts)
        lengths = [max(len(row) - 1, 1) if text else 0 for row, text in zip(rows, texts, strict=True)]
        most = max(lengths, default=1)
        longest = min(next(n for n in padded_lengths() if n >= most), self.context)
        for batch in self.ensemble.batcher.batches(lengths, longest):
            text_BT, next_BT = np.zeros((2, batch.rows, batch.length), np.int32)
            for b, i in enumerate(batch.indices):
                n = len(rows[i]) - 1
                text_BT[b, :n], next_BT[b, :n] = rows[i][:-1], rows[i][1:]
            log_probs_BT = self._predicted(text_BT, next_BT)
            for b, i in enumerate(batch.indices):
                log_probs = log_probs_BT[b, : len(rows[i]) - 1].tolist()
                nothing = [None] * (len(texts[i]) - len(log_probs))
                results[i] = ScoredText(tuple(self.vocabulary.pieces(texts[i])), (*nothing, *log_probs))
        return results

    def _predicted(self, text_BT: np.ndarray, next_BT: np.ndarray) -> np.ndarray:
        """`predicted`, in parts if the whole batch does not fit into memory."""
        batcher = self.ensemble.batcher

        def part(rows: slice) -> np.ndarray:
            placed = batcher.put(text_BT[rows], next_BT[rows])
            return np.asarray(predicted(self.ensemble.params, *placed, models=self.ensemble.models))

        return np.concatenate(batcher.in_parts(part, len(text_BT)))


@partial(jax.jit, static_argnames="models")
def predicted(params: tuple[Params, ...], text_BT: Array, next_BT: Array, *, models: tuple[Model, ...]) -> Array:
    """The log-probability of each piece of `next_BT`, from the probabilities averaged over the models: (B, T)."""
    log_probs = []
    for model, parameters in zip(models, params, strict=True):
        log_probs_BTV = jax.nn.log_softmax(model.apply(parameters, text_BT))
        log_probs.append(jnp.take_along_axis(log_probs_BTV, next_BT[..., None], axis=2)[..., 0])
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))
