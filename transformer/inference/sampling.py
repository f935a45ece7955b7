"""Sampling: draws the next piece of each hypothesis instead of searching for the best (`choose` of `beam_search`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import UserError, shown
from transformer.inference.beam_search import Beams, Choose
from transformer.model.checks import check_key, value_of


def filtered(logits_XV: Array, *, top_k: Array | int, top_p: Array | float, min_p: Array | float = 0.0) -> Array:
    """Logits with -inf at pieces that may not be drawn.

    `top_k`: keep only the k most probable pieces (0 = all). `top_p`: after that, keep only the most probable pieces
    that together have at least this probability (nucleus sampling, Holtzman et al. 2020). `min_p`: keep only pieces
    with at least this share of the probability of the most probable one (Nguyen et al. 2024, arXiv 2407.01082). The
    most probable piece always stays; of equal pieces, the first stay. Raises `UserError` for invalid values, but not
    inside `jax.jit`, where they are unknown.
    """
    _check_filter(top_k, top_p, min_p)
    # Sorting a large vocabulary takes longer than the model's step, so it is left out where it changes nothing.
    sorts = jnp.logical_or(jnp.asarray(top_k) > 0, jnp.asarray(top_p) < 1)
    kept_XV = jax.lax.cond(sorts, lambda x: _most_probable(x, top_k, top_p), lambda x: x, logits_XV)
    lowest_X1 = jnp.max(logits_XV, axis=-1, keepdims=True) + jnp.log(jnp.asarray(min_p, jnp.float32))
    return jnp.where(logits_XV >= lowest_X1, kept_XV, -jnp.inf)


def _most_probable(logits_XV: Array, top_k: Array | int, top_p: Array | float) -> Array:
    """The logits, with -inf at pieces that `top_k` and `top_p` leave out."""
    V = logits_XV.shape[-1]
    ordered_XV = jnp.flip(jnp.sort(logits_XV, axis=-1), axis=-1)
    kept_V = jnp.arange(V) < jnp.where(top_k > 0, top_k, V)
    probs_XV = jax.nn.softmax(jnp.where(kept_V, ordered_XV, -jnp.inf), axis=-1)
    before_XV = jnp.cumsum(probs_XV, axis=-1) - probs_XV
    kept_XV = kept_V & (before_XV < top_p)
    lowest_X1 = jnp.min(jnp.where(kept_XV, ordered_XV, jnp.inf), axis=-1, keepdims=True)
    above_XV, equal_XV = logits_XV > lowest_X1, logits_XV == lowest_X1
    room_X1 = jnp.sum(kept_XV, axis=-1, keepdims=True) - jnp.sum(above_XV, axis=-1, keepdims=True)
    stays_XV = above_XV | (equal_XV & (jnp.cumsum(equal_XV, axis=-1) <= room_X1))
    return jnp.where(stays_XV, logits_XV, -jnp.inf)


def sampled(
    key: Array,
    *,
    temperature: Array | float,
    top_k: Array | int,
    top_p: Array | float,
    min_p: Array | float = 0.0,
) -> Choose:
    """A `choose` that draws one piece for each of the M hypotheses, independently of the other hypotheses.

    A draw depends on the key, on `beams.given["number_B"]` (the number of the sentence in the input), on the hypothesis
    and on its length, but not on the other sentences of the batch. Scores are the log-probabilities of the model,
    whatever the temperature. `beam_search` then continues each of the M hypotheses to its end, whatever `n_best` and
    `stop_early`, so that all are fair draws. Raises `UserError` as `filtered` does, and for a temperature that is not
    above 0, or a key that is none.
    """
    check_key(key, optional=False)
    positive = "a finite number above 0; for the likeliest piece alone: top_k = 1"
    _check_filter(top_k, top_p, min_p)
    _check("temperature", temperature, positive, lambda t: t.dtype.kind in "iuf" and 0 < t < jnp.inf)

    def choose(log_probs_BMV: Array, beams: Beams) -> tuple[Array, Array, Array]:
        B, M, V = log_probs_BMV.shape
        if not isinstance(beams.given, Mapping) or beams.given.get("number_B") is None:
            raise UserError("sampling needs the numbers of the sentences: beam_search(..., given={'number_B': ...})")
        numbers_B = jnp.asarray(beams.given["number_B"])
        if numbers_B.shape != (B,) or not jnp.issubdtype(numbers_B.dtype, jnp.integer):
            raise UserError(f"number_B has the shape {numbers_B.shape}: give an integer for each of {B} sentences")

        def noise(number: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, number), beams.at), (M, V), jnp.float32)

        logits_XV = filtered(log_probs_BMV.reshape(-1, V) / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        noise_XV = jax.vmap(noise)(numbers_B).reshape(-1, V)
        _, pieces_X1 = jax.lax.top_k(logits_XV + noise_XV, 1)
        pieces_BM = pieces_X1.reshape(B, M)
        drawn_BM = jnp.take_along_axis(log_probs_BMV, pieces_BM[..., None], axis=2)[..., 0]
        # The search begins with a single hypothesis; all samples continue it.
        parents_BM = jnp.where(beams.at == 0, 0, jnp.broadcast_to(jnp.arange(M), (B, M)))
        return jnp.take_along_axis(beams.log_probs_BM, parents_BM, axis=1) + drawn_BM, parents_BM, pieces_BM

    return choose


def _check_filter(top_k: Any, top_p: Any, min_p: Any) -> None:
    _check("top_k", top_k, "an integer, 0 or more", lambda k: k.dtype.kind in "iu" and k >= 0)
    _check("top_p", top_p, "a number above 0 and at most 1", lambda p: p.dtype.kind in "iuf" and 0 < p <= 1)
    _check("min_p", min_p, "a number from 0 to 1", lambda p: p.dtype.kind in "iuf" and 0 <= p <= 1)


def _check(name: str, number: Any, rule: str, holds: Callable[[np.ndarray], Any]) -> None:
    """Raise `UserError` if the value of `number` is known and breaks its rule."""
    value = value_of(number)
    if value is not None and (value.ndim or not holds(value)):
        raise UserError(f"{name} = {shown(number)}: must be {rule}")
