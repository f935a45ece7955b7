"""Beam search (paper §6.1; Wu et al. 2016 §7) over any step function; it knows no model.

Shapes: B sentences, M beams, L output positions, V vocabulary; X = B * M rows, the beams of a sentence side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Step = Callable[[Array, Any, Array], tuple[Array, Any]]


class Hypotheses(NamedTuple):
    """The finished hypotheses of each sentence, best first."""

    tokens_BML: Array
    """Pieces without bos, ending with eos, padded on the right."""
    lengths_BM: Array
    """Number of pieces, eos included; 0 where fewer than M hypotheses exist."""
    scores_BM: Array
    """Log-probability divided by the length penalty; -inf where fewer than M hypotheses exist."""


def penalty(length: Array | int, alpha: float, form: str) -> Array:
    """What a log-probability is divided by; the length counts eos.

    'paper': ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14); 'fairseq': length^alpha; 'none': 1.
    """
    length = jnp.asarray(length, jnp.float32)
    if form == "paper":
        return ((5 + length) / 6) ** alpha
    if form == "fairseq":
        return length**alpha
    if form == "none":
        return jnp.ones_like(length)
    raise ValueError(f"length_normalization {form!r}: must be 'paper', 'fairseq' or 'none'")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Beams:
    at: Array  # scalar: pieces chosen so far
    live_tokens_BML: Array
    live_scores_BM: Array  # log-probabilities, best first
    done_tokens_BML: Array
    done_scores_BM: Array  # normalised, best first
    done_lengths_BM: Array
    stopped_B: Array
    cache: Any


def beam_search(
    step: Step,
    cache: Any,
    limit_B: Array,
    *,
    max_length: int,
    beam_size: int,
    bos: int,
    eos: int,
    pad: int = 0,
    length_penalty: float = 0.6,
    length_normalization: str = "paper",
    n_best: int = 1,
    stop_early: bool = True,
) -> Hypotheses:
    """The best hypotheses of B sentences under `step`.

    `step(tokens_X, cache, at) -> log_probs_XV, cache` takes the last piece of each row (bos at first), which stands at
    position `at`, and gives the log-probabilities (at most 0; -inf forbids a piece) of the next. `cache` is any tree of
    arrays with X = B * beam_size leading rows; its rows are reordered as the beams are. Sentence b's hypotheses have
    at most `limit_B[b]` pieces, eos included, and are made to end there; `max_length` is the largest limit.

    At each position the 2 * beam_size best continuations are kept for a moment: those that end are finished, the best
    others live on. A beam of 1 keeps the one best alone, which is greedy search.

    A sentence stops when no live beam can still beat its `n_best`-th finished hypothesis, however long it gets: since
    log-probabilities only fall and penalties only rise, its score is at most the present log-probability over the
    penalty of the limit. So stopping (`stop_early`) changes no result among the `n_best`.
    """
    B, M, L = limit_B.shape[0], beam_size, max_length
    candidates = 2 * M if M > 1 else 1
    rows = jnp.arange(B)[:, None]

    def score(log_probs: Array, length: Array | int) -> Array:
        return log_probs / penalty(length, length_penalty, length_normalization)

    def continues(s: _Beams) -> Array:
        return (s.at < L) & ~jnp.all(s.stopped_B)

    def advance(s: _Beams) -> _Beams:
        last_BM = jnp.where(s.at == 0, bos, s.live_tokens_BML[:, :, jnp.maximum(s.at - 1, 0)])
        log_probs_XV, cache = step(last_BM.reshape(-1), s.cache, s.at)
        V = log_probs_XV.shape[-1]
        # At its limit a sentence can do nothing but end.
        must_end_B = s.at + 1 >= limit_B
        ends_V = jnp.arange(V) == eos
        log_probs_BMV = jnp.where(must_end_B[:, None, None] & ~ends_V, -jnp.inf, log_probs_XV.reshape(B, M, V))
        totals_BMV = s.live_scores_BM[:, :, None] + log_probs_BMV
        best, index = jax.lax.top_k(totals_BMV.reshape(B, M * V), min(candidates, M * V))
        parent, piece = index // V, index % V
        tokens = s.live_tokens_BML[rows, parent].at[:, :, s.at].set(piece)
        ended = piece == eos

        # Finished: the old ones first, so that of two equal scores the earlier stays ahead.
        fresh = jnp.where(ended, score(best, s.at + 1), -jnp.inf)
        done_scores, kept = jax.lax.top_k(jnp.concatenate([s.done_scores_BM, fresh], axis=1), M)
        done_tokens = jnp.concatenate([s.done_tokens_BML, tokens], axis=1)[rows, kept]
        done_lengths = jnp.concatenate([s.done_lengths_BM, jnp.full_like(piece, s.at + 1)], axis=1)[rows, kept]

        # Living: the best M that did not end.
        live_scores, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, best), M)
        origin_X = (rows * M + parent[rows, kept]).reshape(-1)
        cache = cache if M == 1 else jax.tree.map(lambda leaf: leaf[origin_X], cache)

        # A stopped sentence keeps what it had, whatever its neighbours still do.
        frozen = s.stopped_B[:, None]
        done_scores = jnp.where(frozen, s.done_scores_BM, done_scores)
        attainable_B = score(live_scores[:, 0], limit_B)
        beaten_B = done_scores[:, n_best - 1] >= attainable_B
        return _Beams(
            at=s.at + 1,
            live_tokens_BML=tokens[rows, kept],
            live_scores_BM=live_scores,
            done_tokens_BML=jnp.where(frozen[..., None], s.done_tokens_BML, done_tokens),
            done_scores_BM=done_scores,
            done_lengths_BM=jnp.where(frozen, s.done_lengths_BM, done_lengths),
            stopped_B=s.stopped_B | must_end_B | (beaten_B if stop_early else False),
            cache=cache,
        )

    nothing = jnp.full((B, M, L), pad, jnp.int32)
    start = _Beams(
        at=jnp.int32(0),
        live_tokens_BML=nothing,
        live_scores_BM=jnp.tile(jnp.where(jnp.arange(M) == 0, 0.0, -jnp.inf), (B, 1)),
        done_tokens_BML=nothing,
        done_scores_BM=jnp.full((B, M), -jnp.inf),
        done_lengths_BM=jnp.zeros((B, M), jnp.int32),
        stopped_B=limit_B <= 0,
        cache=cache,
    )
    end = jax.lax.while_loop(continues, advance, start)
    exists_BM = jnp.isfinite(end.done_scores_BM)
    return Hypotheses(
        jnp.where(exists_BM[..., None], end.done_tokens_BML, pad),
        jnp.where(exists_BM, end.done_lengths_BM, 0),
        end.done_scores_BM,
    )
