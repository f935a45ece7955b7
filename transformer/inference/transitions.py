"""A constraint by which every output is a tree over exactly the words of its sentence (see `data.linearised`).

Shapes: B sentences, M beams, L output positions, V symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from transformer.config import EOS
from transformer.inference.beam_search import Beams

MOST_OPENED = 6
"""The most constituents that are opened in a row."""


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["shift", "opening", "closing"])
@dataclass(frozen=True)
class TreeConstraint:
    """The ids of symbols, as `Symbols` has them. `beams.given["words_B"]` is the number of words of each sentence."""

    shift: int
    opening: range
    closing: range

    def adjust(self, log_probs_BMV: Array, beams: Beams) -> Array:
        """The log-probabilities, with -inf at symbols that are not allowed next.

        - A constituent opens unless all words are shifted, or `MOST_OPENED` were opened in a row, or the limit leaves
          no room to close it.
        - A word is shifted if one is left and a constituent is open.
        - A constituent closes unless it is empty, or is the last open one and words are left. If closing symbols name
          labels, only that of the innermost constituent may follow.
        - The end is certain, with a log-probability of 0, where no constituent is open and all words are shifted.
        """
        at, tokens_BML = beams.at, beams.tokens_BML
        V, L = log_probs_BMV.shape[-1], tokens_BML.shape[2]
        chosen_L, ids_V = jnp.arange(L) < at, jnp.arange(V)
        opens_BML = chosen_L & _within(tokens_BML, self.opening)
        closes_BML = chosen_L & _within(tokens_BML, self.closing)
        open_BM = (opens_BML.sum(2) - closes_BML.sum(2))[..., None]
        left_BM = (beams.given["words_B"][:, None] - (chosen_L & (tokens_BML == self.shift)).sum(2))[..., None]
        # The number of symbols at the end that opened constituents.
        run_BM = (at - 1 - jnp.max(jnp.where(chosen_L & ~opens_BML, jnp.arange(L), -1), axis=2))[..., None]
        done_BM = (at > 0) & (open_BM == 0) & (left_BM == 0)
        fits_BM = at + 2 + left_BM + open_BM + 1 <= beams.limit_B[:, None, None]
        fits_BM |= (at == 0) & (left_BM > 0)  # a tree has a root, whatever the limit
        may_open = (left_BM > 0) & (run_BM < MOST_OPENED) & fits_BM
        may_shift = (left_BM > 0) & (open_BM > 0)
        may_close = (run_BM == 0) & (open_BM > jnp.where(left_BM > 0, 1, 0))
        allowed = (_within(ids_V, self.opening) & may_open) | ((ids_V == self.shift) & may_shift)
        allowed |= self._closing(ids_V, tokens_BML, opens_BML, closes_BML, open_BM) & may_close
        log_probs_BMV = jnp.where(allowed, log_probs_BMV, -jnp.inf)
        return jnp.where(done_BM, jnp.where(ids_V == EOS, 0.0, -jnp.inf), log_probs_BMV)

    def _closing(self, ids_V: Array, tokens_BML: Array, opens_BML: Array, closes_BML: Array, open_BM: Array) -> Array:
        """Whether each symbol closes the innermost open constituent."""
        if len(self.closing) == 1:
            return _within(ids_V, self.closing)
        depth_BML = jnp.cumsum(opens_BML.astype(jnp.int32) - closes_BML, axis=2)
        # The innermost open constituent is the last one that was opened at today's depth.
        places_BML = jnp.where(opens_BML & (depth_BML == open_BM), jnp.arange(tokens_BML.shape[2]), 0)
        opener_BM = jnp.take_along_axis(tokens_BML, places_BML.max(2, keepdims=True), axis=2)
        return ids_V == opener_BM - self.opening.start + self.closing.start


def _within(ids: Array, symbols: range) -> Array:
    return (ids >= symbols.start) & (ids < symbols.stop)
