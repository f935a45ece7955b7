"""What users forbid or demand of an output, as one hook on the scores of a search (`adjust` of `beam_search`).

Shapes: B sentences, M beams, L output positions, V vocabulary, P phrases, W pieces of a phrase.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from transformer.inference.beam_search import Adjust, Beams


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["min_length", "banned_PW"],
    meta_fields=["eos", "no_repeat_ngram", "prefix"],
)
@dataclass(frozen=True)
class Constraints:
    """Wishes that hold for all sentences; a forced prefix is each sentence's own."""

    eos: int
    min_length: Array | int = 0
    """No end of sentence before so many pieces."""
    banned_PW: Array | None = None
    """Phrases that may not occur, padded with -1 on the left."""
    no_repeat_ngram: int = 0
    """No sequence of so many pieces occurs twice; 0 = no such wish."""
    prefix: bool = False
    """Each output begins with `beams.given["prefix_BL"]`, pieces padded with -1 on the right."""

    def adjust(self, log_probs_BMV: Array, beams: Beams) -> Array:
        """The log-probabilities with -inf at what is not allowed next. A forced prefix goes before all other wishes."""
        V = log_probs_BMV.shape[-1]
        pieces_V = jnp.arange(V)
        forbidden = (pieces_V == self.eos) & (beams.at < self.min_length)
        if self.no_repeat_ngram:
            forbidden = forbidden | _repeats(beams.tokens_BML, beams.at, self.no_repeat_ngram, V)
        if self.banned_PW is not None:
            forbidden = forbidden | _completes(beams.tokens_BML, beams.at, self.banned_PW, V)
        if self.prefix:
            prefix_BL = beams.given["prefix_BL"]
            piece_B = jnp.where(beams.at < prefix_BL.shape[1], prefix_BL[:, beams.at % prefix_BL.shape[1]], -1)
            forced_B11 = (piece_B >= 0)[:, None, None]
            forbidden = jnp.where(forced_B11, pieces_V != piece_B[:, None, None], forbidden)
        return jnp.where(forbidden, -jnp.inf, log_probs_BMV)


def together(*hooks: Adjust | None) -> Adjust | None:
    """One hook that applies several, the first one first."""
    wanted = [hook for hook in hooks if hook is not None]

    def adjust(log_probs_BMV: Array, beams: Beams) -> Array:
        for hook in wanted:
            log_probs_BMV = hook(log_probs_BMV, beams)
        return log_probs_BMV

    return adjust if wanted else None


def _marked(pieces_BMC: Array, wanted_BMC: Array, V: int) -> Array:
    """(B, M, V): whether a piece is among the wanted ones."""
    B, M, _ = pieces_BMC.shape
    b, m = jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None]
    # What is not wanted is written beyond the vocabulary, where it is dropped.
    return jnp.zeros((B, M, V), bool).at[b, m, jnp.where(wanted_BMC, pieces_BMC, V)].set(True, mode="drop")


def _repeats(tokens_BML: Array, at: Array, n: int, V: int) -> Array:
    """(B, M, V): the pieces that would complete an n-gram that the hypothesis already has."""
    L = tokens_BML.shape[2]
    if n > L:
        return jnp.zeros((*tokens_BML.shape[:2], V), bool)
    last_BMW = jax.lax.dynamic_slice_in_dim(tokens_BML, jnp.maximum(at - (n - 1), 0), n - 1, axis=2)
    starts = jnp.arange(L - n + 1)
    same = jnp.ones((*tokens_BML.shape[:2], len(starts)), bool)
    for j in range(n - 1):
        same &= tokens_BML[:, :, j : j + len(starts)] == last_BMW[:, :, j : j + 1]
    following = tokens_BML[:, :, n - 1 :]
    return _marked(following, same & (starts + n <= at), V)


def _completes(tokens_BML: Array, at: Array, banned_PW: Array, V: int) -> Array:
    """(B, M, V): the pieces that would complete a banned phrase."""
    W, L = banned_PW.shape[1], tokens_BML.shape[2]
    same_BMP = jnp.ones((*tokens_BML.shape[:2], banned_PW.shape[0]), bool)
    for j in range(W - 1):
        place = at - (W - 1) + j
        piece_BM1 = jnp.where(place >= 0, tokens_BML[:, :, jnp.clip(place, 0, L - 1)], -2)[..., None]
        same_BMP &= (banned_PW[:, j] == -1) | (piece_BM1 == banned_PW[:, j])
    last_BMP = jnp.broadcast_to(banned_PW[:, -1], same_BMP.shape)
    return _marked(last_BMP, same_BMP & (last_BMP >= 0), V)
