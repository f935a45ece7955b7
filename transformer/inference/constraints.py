"""What users forbid or demand of an output, as one hook on the scores of a search (`adjust` of `beam_search`).

Shapes: B sentences, M beams, L output positions, V vocabulary, P phrases, W pieces of a phrase, O offsets into a
prefix, K pieces that one offset may have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from transformer.inference.beam_search import Beams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spelling:
    """What pieces spell, in numbers."""

    rank_V: Array
    """Place of each piece in the order of what they spell; -1 where that is nothing."""
    bytes_V: Array
    """Number of bytes that each piece spells."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["min_length", "banned_PW", "prefix"],
    meta_fields=["eos", "no_repeat_ngram"],
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
    prefix: Spelling | None = None
    """Given, each output begins with the text that the tables in `beams.given` demand (see `prefixes.py`)."""

    def adjust(self, log_probs_BMV: Array, beams: Beams) -> Array:
        """The log-probabilities with -inf at what is not allowed next. A forced prefix goes before all other wishes,
        but not what a piece adds to it."""
        V = log_probs_BMV.shape[-1]
        pieces_V = jnp.arange(V)
        forbidden = (pieces_V == self.eos) & (beams.at < self.min_length)
        if self.no_repeat_ngram:
            forbidden = forbidden | _repeating(beams.tokens_BML, beams.at, self.no_repeat_ngram, V)
        if self.banned_PW is not None:
            forbidden = forbidden | _completing(beams.tokens_BML, beams.at, self.banned_PW, V)
        if self.prefix is not None:
            unfinished_BM1, within_BMV, beyond_BMV = _prefix_masks(log_probs_BMV, beams, self.prefix, self.eos)
            forbidden = jnp.where(unfinished_BM1, ~(within_BMV | (beyond_BMV & ~forbidden)), forbidden)
        return jnp.where(forbidden, -jnp.inf, log_probs_BMV)


def _prefix_masks(log_probs_BMV: Array, beams: Beams, spelling: Spelling, eos: int) -> tuple[Array, Array, Array]:
    """Of hypotheses that have to go on with their prefix: which they are, (B, M, 1); the pieces that may follow within
    the prefix; and those that complete it and may add to it, eos among them where the prefix may be the whole."""
    given, at = beams.given, beams.at
    (B, M, V), L = log_probs_BMV.shape, beams.tokens_BML.shape[2]
    bytes_BML = jnp.where(jnp.arange(L) < at, jnp.asarray(spelling.bytes_V)[beams.tokens_BML], 0)
    offset_BM = bytes_BML.sum(axis=2)
    unfinished_BM = offset_BM < given["length_B"][:, None]
    of_offset = jnp.arange(B)[:, None], jnp.minimum(offset_BM, given["pieces_BOK"].shape[1] - 1)
    pieces_BMK, fewest_BMK, sure_BMK = (given[name][of_offset] for name in ("pieces_BOK", "fewest_BOK", "sure_BOK"))
    exists_BMK = pieces_BMK >= 0
    # With room for the rest of the prefix and eos; where there was none from the start, the limit cuts the prefix.
    room_BMK = exists_BMK & (at + 1 + fewest_BMK < beams.limit_B[:, None, None])
    beyond_BM2 = given["beyond_BO2"][of_offset]
    possible_BM1 = room_BMK.any(axis=2, keepdims=True) | (beyond_BM2[..., :1] < beyond_BM2[..., 1:])
    fits_BMK = jnp.where(possible_BM1, room_BMK, exists_BMK)
    # As many as a search without a prefix would look at.
    ranked_BM1 = jax.lax.top_k(log_probs_BMV, min(2 * M, V) if M > 1 else 1)[0][..., -1:]
    likely_BMK = jnp.take_along_axis(log_probs_BMV, jnp.maximum(pieces_BMK, 0), axis=2) >= ranked_BM1
    sure_BMK &= fits_BMK
    within_BMK = fits_BMK & (sure_BMK | likely_BMK | ~sure_BMK.any(axis=2, keepdims=True))
    beyond_BMV = (spelling.rank_V >= beyond_BM2[..., :1]) & (spelling.rank_V < beyond_BM2[..., 1:])
    ends_BM1 = (offset_BM >= given["ends_B"][:, None])[..., None]
    beyond_BMV |= (jnp.arange(V) == eos) & ends_BM1
    return unfinished_BM[..., None], _mask(pieces_BMK, within_BMK, V), beyond_BMV


def _mask(pieces_BMC: Array, wanted_BMC: Array, V: int) -> Array:
    """(B, M, V): whether a piece is among the wanted ones."""
    B, M, _ = pieces_BMC.shape
    b, m = jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None]
    # What is not wanted is written beyond the vocabulary, where it is dropped.
    return jnp.zeros((B, M, V), bool).at[b, m, jnp.where(wanted_BMC, pieces_BMC, V)].set(True, mode="drop")


def _repeating(tokens_BML: Array, at: Array, n: int, V: int) -> Array:
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
    return _mask(following, same & (starts + n <= at), V)


def _completing(tokens_BML: Array, at: Array, banned_PW: Array, V: int) -> Array:
    """(B, M, V): the pieces that would complete a banned phrase."""
    W, L = banned_PW.shape[1], tokens_BML.shape[2]
    same_BMP = jnp.ones((*tokens_BML.shape[:2], banned_PW.shape[0]), bool)
    for j in range(W - 1):
        index = at - (W - 1) + j
        piece_BM1 = jnp.where(index >= 0, tokens_BML[:, :, jnp.clip(index, 0, L - 1)], -2)[..., None]
        same_BMP &= (banned_PW[:, j] == -1) | (piece_BM1 == banned_PW[:, j])
    last_BMP = jnp.broadcast_to(banned_PW[:, -1], same_BMP.shape)
    return _mask(last_BMP, same_BMP & (last_BMP >= 0), V)
