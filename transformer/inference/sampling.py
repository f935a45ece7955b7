"""Sampling instead of searching: another way to choose a hypothesis's next piece (`choose` of `beam_search`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from transformer.inference.beam_search import Beams, Choose


def filtered(logits_XV: Array, *, top_k: Array | int, top_p: Array | float) -> Array:
    """Logits with -inf at what is not to be drawn.

    `top_k`: only the k likeliest (0 = all). `top_p`: only the likeliest that together have at least this probability
    (Holtzman et al. 2020), after the first filter; the likeliest of all always stays. Of equals the first stay.
    """
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


def sampled(key: Array, *, temperature: Array | float, top_k: Array | int, top_p: Array | float) -> Choose:
    """A `choose` that draws one piece for each of the M hypotheses, which go on independently of one another.

    Draws depend on the key, on `beams.given["number_B"]` (the sentence's number), on the hypothesis and its length:
    not on which sentences share a batch. Scores stay the model's own log-probabilities, whatever the temperature.
    """

    def choose(log_probs_BMV: Array, beams: Beams) -> tuple[Array, Array, Array]:
        B, M, V = log_probs_BMV.shape

        def noise(number: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, number), beams.at), (M, V))

        logits_XV = filtered(log_probs_BMV.reshape(-1, V) / temperature, top_k=top_k, top_p=top_p)
        noise_XV = jax.vmap(noise)(beams.given["number_B"]).reshape(-1, V)
        _, pieces_X1 = jax.lax.top_k(logits_XV + noise_XV, 1)
        pieces_BM = pieces_X1.reshape(B, M)
        drawn_BM = jnp.take_along_axis(log_probs_BMV, pieces_BM[..., None], axis=2)[..., 0]
        # A search begins with one hypothesis, which all samples continue.
        parents_BM = jnp.where(beams.at == 0, 0, jnp.broadcast_to(jnp.arange(M), (B, M)))
        return jnp.take_along_axis(beams.log_probs_BM, parents_BM, axis=1) + drawn_BM, parents_BM, pieces_BM

    return choose
