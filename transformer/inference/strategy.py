"""From a `DecodeConfig` to the options of the search, constraints and sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from transformer.config import BOS, EOS, PAD, DecodeConfig, UserError
from transformer.inference.beam_search import Options
from transformer.inference.constraints import Constraints, Spelling
from transformer.inference.engine import Sampler, Strategy
from transformer.inference.pieces import texts

if TYPE_CHECKING:
    from transformer.data.tokenizer import Tokenizer


def beams(config: DecodeConfig) -> int:
    """The number of live hypotheses of each sentence."""
    return config.n_best if config.sample else config.beam_size


def options(config: DecodeConfig) -> Options:
    """The options of a search."""
    return Options(
        beam_size=beams(config),
        bos=BOS,
        eos=EOS,
        pad=PAD,
        length_penalty=config.length_penalty,
        length_normalization=config.length_normalization,
        n_best=config.n_best,
    )


def strategy(config: DecodeConfig, tokenizer: Tokenizer, spelling: Spelling | None = None) -> Strategy:
    """The search with its constraints and its sampler. With `spelling`, outputs begin with forced prefixes."""
    constraints = None
    banned = _banned(config, tokenizer) if config.banned else None
    if config.min_length or config.no_repeat_ngram or config.banned or spelling is not None:
        constraints = Constraints(EOS, config.min_length, banned, config.no_repeat_ngram, spelling)
    sampler = None
    if config.sample:
        sampler = Sampler(jax.random.key(config.seed), config.temperature, config.top_k, config.top_p)
    return Strategy(options(config), constraints, sampler)


def _banned(config: DecodeConfig, tokenizer: Tokenizer) -> np.ndarray:
    """`decode.banned` as pieces, each phrase padded with -1 on the left.

    Raises `UserError` for a phrase that the tokenizer reduces to nothing or to a space.
    """
    phrases = tokenizer.encode(texts("decode.banned", config.banned), "target")
    for phrase, pieces in zip(config.banned, phrases, strict=True):
        if not pieces or not tokenizer.decode([pieces])[0].strip():
            raise UserError(f"decode.banned: this model's tokenizer keeps nothing of {phrase!r}; leave it out")
    banned_PW = np.full((len(phrases), max(map(len, phrases))), -1, np.int32)
    for row, phrase in zip(banned_PW, phrases, strict=True):
        row[len(row) - len(phrase) :] = phrase
    return banned_PW
