"""What the steps of a search read and hand on: memories of sources, or prompts in the cache of a decoder alone.

Shapes: B sentences, M beams, P pieces of a prompt, T pieces, V vocabulary; X = B * M rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.model import Cache, Memory

STAGE = 16  # output positions of a stage: the room that a new cache has


class Prompts(NamedTuple):
    """The pieces that a decoder alone goes on from: a batch for `engine.decode` in place of sources."""

    tokens_BP: Any
    """Padded on the right with any id."""
    lengths_B: Any
    """Number of pieces, at least 1; 0 in rows that only fill up the batch."""


class Context(NamedTuple):
    """What all steps read. A batch has memories of its sources, or the end of its prompts."""

    memories: tuple[Memory | None, ...]
    """One for each model; None for a decoder alone."""
    last_B: Array | None = None
    """The last piece of each prompt, which is the first that the search feeds."""
    offset_B: Array | None = None
    """Position of that piece; negative once the context has been cut."""

    def fed(self, tokens_X: Array, at: Array) -> tuple[Array, Array]:
        """The pieces that step `at` feeds, and their positions. `tokens_X`: those that the search has chosen last."""
        if self.last_B is None:
            return tokens_X, at
        last_X = jnp.repeat(self.last_B, len(tokens_X) // len(self.last_B))
        return jnp.where(at == 0, last_X, tokens_X), at + self.offset_B


class Past(NamedTuple):
    """What each step hands on to the next."""

    caches: tuple[Cache, ...]
    """One for each model."""
    used_BMV: Array | None = None
    """True at the pieces of each hypothesis and of its prompt; None if there is no penalty on repetition."""
    passed_BM: Array | None = None
    """Number of words that each hypothesis has passed; None without `model.hard_attention`."""

    def use(self, tokens_X: Array) -> Past:
        """With these last pieces of the hypotheses among the pieces that are used."""
        if self.used_BMV is None:
            return self
        fed_XV = tokens_X[:, None] == jnp.arange(self.used_BMV.shape[2])
        return self._replace(used_BMV=self.used_BMV | fed_XV.reshape(self.used_BMV.shape))

    def passing(self, tokens_X: Array, shift: int) -> Past:
        """With the words that these last pieces have passed: those that are `shift`."""
        return self._replace(passed_BM=self.passed_BM + (tokens_X == shift).reshape(self.passed_BM.shape))

    def penalized(self, logits_XV: Array, penalty: Array | float | None) -> Array:
        """Logits with the penalty on repetition (Keskar et al. 2019, CTRL, §4.1), for logits of either sign: those of
        pieces that are used are divided by it where positive, and multiplied where negative."""
        if self.used_BMV is None:
            return logits_XV
        lower_XV = jnp.where(logits_XV > 0, logits_XV / penalty, logits_XV * penalty)
        return jnp.where(self.used_BMV.reshape(logits_XV.shape), lower_XV, logits_XV)

    def reorder(self, parents_BM: Array) -> Past:
        """The past after beam m of sentence b has continued the old beam `parents_BM[b, m]`."""
        used_BMV, passed_BM = self.used_BMV, self.passed_BM
        if used_BMV is not None:
            used_BMV = jnp.take_along_axis(used_BMV, parents_BM[:, :, None], axis=1)
        if passed_BM is not None:
            passed_BM = jnp.take_along_axis(passed_BM, parents_BM, axis=1)
        return Past(tuple(cache.reorder(parents_BM) for cache in self.caches), used_BMV, passed_BM)

    def collect(self, keep: int, stage: int = STAGE) -> Past:
        """With caches of `keep` slots that hold all pieces that are seen, and room for `stage` further positions."""
        return self._replace(caches=tuple(cache.collect(keep, stage) for cache in self.caches))


def prefilled(decoder: Any, tokens_XT: Array, lengths_B: Array, beams: int, dtype: Any, stage: int = STAGE) -> Cache:
    """A cache that holds all pieces but the last of each row, with room for `stage` further positions.

    `tokens_XT`: a row for each sentence, which all its beams then share, or one for each beam. `lengths_B`: the number
    of pieces, the last included. `dtype`: see `init_cache`.
    """
    rows, T = len(lengths_B), tokens_XT.shape[1]
    alone = len(tokens_XT) == rows
    empty = decoder.init_cache(rows, T + stage * beams if alone else T + stage, 1 if alone else beams, dtype)
    cache = decoder.hidden(tokens_XT, cache=empty, at_B=0)[1]
    seen_BMS = cache.seen_BMS & (cache.positions_BS < lengths_B[:, None] - 1)[:, None]
    return cache._replace(seen_BMS=jnp.broadcast_to(seen_BMS, (rows, beams, seen_BMS.shape[2])))


def used_pieces(rows: int, beams: int, vocab_size: int, prompts: Prompts | None) -> Array:
    """used_BMV before the first step."""
    used_BV = jnp.zeros((rows, vocab_size), bool)
    if prompts is not None:
        real_BP = jnp.arange(prompts.tokens_BP.shape[1]) < prompts.lengths_B[:, None]
        pieces_BP = jnp.where(real_BP, prompts.tokens_BP, vocab_size)  # padding is outside of the array: dropped
        used_BV = used_BV.at[jnp.arange(rows)[:, None], pieces_BP].set(True, mode="drop")
    return jnp.broadcast_to(used_BV[:, None], (rows, beams, vocab_size))


class Sliding:
    """Which pieces of growing texts a model with a context of `size` pieces sees.

    A text is seen whole until it fills the context. Then the context begins anew with the last half of its pieces, so
    that reading them again costs one step more for each further piece. This depends on the length of the text alone,
    not on the other rows of the batch.
    """

    def __init__(self, prompts: Prompts, size: int):
        self.size, self.keep = size, max(1, size // 2)
        self._tokens_BP, self._lengths_B = np.asarray(prompts.tokens_BP), np.asarray(prompts.lengths_B)
        self._first_B = np.zeros(len(self._lengths_B), np.int32)  # index of the first piece that is seen

    def room(self, rows: np.ndarray, at: int) -> int:
        """The most steps from step `at` on until the context of one of these rows is full."""
        return int((self.size - self._seen(rows, at)).min()) + 1

    def slide(self, rows: np.ndarray, at: int) -> None:
        """Let the full contexts among these rows begin anew before step `at`."""
        full = rows[self._seen(rows, at) > self.size]
        self._first_B[full] = self._lengths_B[full] + at - self.keep

    def _seen(self, rows: np.ndarray, at: int) -> np.ndarray:
        """Number of pieces that step `at` sees in each row, the one that it feeds included."""
        return self._lengths_B[rows] + at - self._first_B[rows]

    def texts(self, rows: np.ndarray, tokens_BML: np.ndarray, at: int) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """The pieces that step `at` sees: for each row a list of one array per hypothesis; and the offset_B of rows.

        `rows`: for each row of `tokens_BML` its row in the prompts, or -1 for a row that is finished.
        """
        texts, offset_B = [], np.zeros(len(rows), np.int32)
        for b, row in enumerate(rows):
            n, first = (self._lengths_B[row], self._first_B[row]) if row >= 0 else (1, at)
            prompt = self._tokens_BP[row, :n]
            texts.append([np.concatenate([prompt, tokens_ML[:at]])[first:] for tokens_ML in tokens_BML[b]])
            offset_B[b] = n - 1 - first
        return texts, offset_B
