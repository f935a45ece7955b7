"""Constraints on outputs, as one hook on the log-probabilities of a search (`adjust` of `beam_search`).

Shapes: B sentences, M beams, L output positions, V vocabulary, P phrases, W pieces of a phrase, O byte offsets into a
prefix, K pieces that may follow at an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from transformer.inference.beam_search import Beams
from transformer.inference.stops import Stops


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spelling:
    """Rank and length of the text that each piece spells."""

    rank_V: Array
    """Rank of each piece in the sorted order of spellings; -1 if it spells nothing."""
    bytes_V: Array
    """Number of bytes that each piece spells."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["min_length", "banned_PW", "prefix", "stops"],
    meta_fields=["eos", "no_repeat_ngram"],
)
@dataclass(frozen=True)
class Constraints:
    """Constraints that are the same for all sentences. The forced prefix of each sentence is in `beams.given`."""

    eos: int
    min_length: Array | int = 0
    """The fewest pieces before the end of sentence."""
    banned_PW: Array | None = None
    """Banned phrases, padded with -1 on the left."""
    no_repeat_ngram: int = 0
    """No sequence of this many pieces occurs twice; 0 = not constrained."""
    prefix: Spelling | None = None
    """If given, each output begins with the text in the tables of `beams.given` (see `prefixes.py`)."""
    stops: Stops | None = None
    """If given, an output ends after the piece that completes a stop string."""

    def adjust(self, log_probs_BMV: Array, beams: Beams) -> Array:
        """The log-probabilities, with -inf at pieces that are not allowed next.

        Inside a forced prefix, the other constraints do not apply. They do apply to a piece that goes beyond its end.
        After a stop string the end is certain: its log-probability is 0.
        """
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
        log_probs_BMV = jnp.where(forbidden, -jnp.inf, log_probs_BMV)
        if self.stops is not None:
            stopped_BM1 = self.stops.found(beams.tokens_BML, beams.at)[..., None]
            log_probs_BMV = jnp.where(stopped_BM1, jnp.where(pieces_V == self.eos, 0.0, -jnp.inf), log_probs_BMV)
        return log_probs_BMV


def _prefix_masks(log_probs_BMV: Array, beams: Beams, spelling: Spelling, eos: int) -> tuple[Array, Array, Array]:
    """Masks for forced prefixes: hypotheses whose prefix is unfinished (B, M, 1); pieces that may follow inside the
    prefix (B, M, V); pieces that complete it and may go beyond it, and eos where the output may end (B, M, V)."""
    given, at = beams.given, beams.at
    (B, M, V), L = log_probs_BMV.shape, beams.tokens_BML.shape[2]
    bytes_BML = jnp.where(jnp.arange(L) < at, jnp.asarray(spelling.bytes_V)[beams.tokens_BML], 0)
    offset_BM = bytes_BML.sum(axis=2)
    unfinished_BM = offset_BM < given["length_B"][:, None]
    of_offset = jnp.arange(B)[:, None], jnp.minimum(offset_BM, given["pieces_BOK"].shape[1] - 1)
    pieces_BMK, fewest_BMK, sure_BMK = (given[name][of_offset] for name in ("pieces_BOK", "fewest_BOK", "sure_BOK"))
    exists_BMK = pieces_BMK >= 0
    # Pieces that leave room for the rest of the prefix and eos. If none does, the limit cuts the prefix.
    room_BMK = exists_BMK & (at + 1 + fewest_BMK < beams.limit_B[:, None, None])
    beyond_BM2 = given["beyond_BO2"][of_offset]
    possible_BM1 = room_BMK.any(axis=2, keepdims=True) | (beyond_BM2[..., :1] < beyond_BM2[..., 1:])
    fits_BMK = jnp.where(possible_BM1, room_BMK, exists_BMK)
    # The pieces that a search without a prefix would consider.
    ranked_BM1 = jax.lax.top_k(log_probs_BMV, min(2 * M, V) if M > 1 else 1)[0][..., -1:]
    likely_BMK = jnp.take_along_axis(log_probs_BMV, jnp.maximum(pieces_BMK, 0), axis=2) >= ranked_BM1
    sure_BMK &= fits_BMK
    within_BMK = fits_BMK & (sure_BMK | likely_BMK | ~sure_BMK.any(axis=2, keepdims=True))
    beyond_BMV = (spelling.rank_V >= beyond_BM2[..., :1]) & (spelling.rank_V < beyond_BM2[..., 1:])
    ends_BM1 = (offset_BM >= given["ends_B"][:, None])[..., None]
    beyond_BMV |= (jnp.arange(V) == eos) & ends_BM1
    return unfinished_BM[..., None], _mask(pieces_BMK, within_BMK, V), beyond_BMV


def _mask(pieces_BMC: Array, wanted_BMC: Array, V: int) -> Array:
    """(B, M, V): whether a piece is among `pieces_BMC` and wanted."""
    B, M, _ = pieces_BMC.shape
    b, m = jnp.arange(B)[:, None, None], jnp.arange(M)[None, :, None]
    # Pieces that are not wanted get the index V, beyond the array, which is dropped.
    return jnp.zeros((B, M, V), bool).at[b, m, jnp.where(wanted_BMC, pieces_BMC, V)].set(True, mode="drop")


def _repeating(tokens_BML: Array, at: Array, n: int, V: int) -> Array:
    """(B, M, V): the pieces that would repeat an n-gram of the hypothesis."""
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
