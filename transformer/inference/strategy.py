"""From a `DecodeConfig` to the options of the search, constraints and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from transformer.config import BOS, EOS, PAD, DecodeConfig, UserError, shown
from transformer.data.given import strings
from transformer.inference.beam_search import Options
from transformer.inference.constraints import Constraints, Spelling
from transformer.inference.programs import Sampler, Strategy
from transformer.inference.stops import automaton
from transformer.inference.transitions import TreeConstraint

if TYPE_CHECKING:
    from transformer.data.linearised import Symbols
    from transformer.data.tokenizer import Tokenizer
    from transformer.data.vocabularies import Vocabulary

_MOST_BANNED = 100  # pieces of a phrase: the program of each step has so many comparisons


def beams(config: DecodeConfig) -> int:
    """The number of live hypotheses of each sentence."""
    return config.n_best if config.sample else config.beam_size


def options(config: DecodeConfig) -> Options:
    """The options of a search for translations."""
    return Options(bos=BOS, eos=EOS, pad=PAD, **_ranking(config))


def _ranking(config: DecodeConfig) -> dict[str, Any]:
    """The options of a search that do not depend on the vocabulary."""
    return {
        "beam_size": beams(config),
        "length_penalty": config.length_penalty,
        "length_normalization": config.length_normalization,
        "n_best": config.n_best,
    }


def strategy(config: DecodeConfig, tokenizer: Tokenizer, spelling: Spelling | None = None) -> Strategy:
    """The search for translations with its constraints and its sampler. With `spelling`, outputs begin with forced
    prefixes."""
    if config.banned and tokenizer is None:
        raise UserError("decode.banned needs a tokenizer: give one, such as Tokenizer.load('tokenizer.model')")
    phrases = tokenizer.encode(strings("decode.banned", config.banned, exact=True), "target") if config.banned else []
    banned = _banned(config, phrases, lambda pieces: tokenizer.decode([pieces])[0])
    constraints = _constraints(config, EOS, banned, prefix=spelling)
    return Strategy(options(config), constraints, _sampler(config), _penalty(config))


def generation(config: DecodeConfig, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> Strategy:
    """The search or the sampling of texts that go on from prompts. They end at their limit, at the end of a document,
    or at one of the strings `stop`."""
    # Samples are ranked by their log-probabilities.
    search = {**_ranking(config), **({"length_normalization": "none"} if config.sample else {})}
    phrases = [vocabulary.encode(phrase).tolist() for phrase in strings("decode.banned", config.banned, exact=True)]
    banned = _banned(config, phrases, vocabulary.decode)
    stops = automaton(stop, vocabulary.spelling) if stop else None
    return Strategy(
        Options(bos=vocabulary.begin, eos=vocabulary.end, cut=True, **search),
        _constraints(config, vocabulary.end, banned, stops=stops),
        _sampler(config),
        _penalty(config),
        tuple(vocabulary.banned),
    )


def trees(config: DecodeConfig, symbols: Symbols) -> Strategy:
    """The search for trees over the words of each sentence."""
    constraint = TreeConstraint(symbols.shift, symbols.opening, symbols.closing)
    return Strategy(options(config), constraint, _sampler(config), _penalty(config))


def _constraints(config: DecodeConfig, eos: int, banned_PW: np.ndarray | None, **more: Any) -> Constraints | None:
    """The constraints; None without any. `more`: further ones, or None."""
    given = any(one is not None for one in (banned_PW, *more.values()))
    if not (config.min_length or config.no_repeat_ngram or given):
        return None
    return Constraints(eos, config.min_length, banned_PW, config.no_repeat_ngram, **more)


def _sampler(config: DecodeConfig) -> Sampler | None:
    c = config
    if not c.sample:
        return None
    with jax.ensure_compile_time_eval():  # a key that was made inside `jax.jit` could not leave it
        # JAX would take an integer as one of 32 bits.
        return Sampler(jax.random.key(c.seed), float(c.temperature), c.top_k, float(c.top_p), float(c.min_p))


def _penalty(config: DecodeConfig) -> float | None:
    return None if config.repetition_penalty == 1 else float(config.repetition_penalty)


def _banned(
    config: DecodeConfig, phrases: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> np.ndarray | None:
    """The pieces of the phrases of `decode.banned`, each padded with -1 on the left; None if there are none.

    Raises `UserError` for a phrase that the tokenizer reduces to nothing or to a space, or that is very long.
    """
    for phrase, pieces in zip(config.banned, phrases, strict=True):
        if not pieces or not decode(pieces).strip():
            raise UserError(f"decode.banned: this model's tokenizer keeps nothing of {phrase!r}; leave it out")
        if len(pieces) > _MOST_BANNED:
            raise UserError(
                f"decode.banned: {shown(phrase)} has {len(pieces)} pieces, and the most is {_MOST_BANNED}; give "
                'several phrases as several values: --decode.banned "a phrase" another'
            )
    if not phrases:
        return None
    banned_PW = np.full((len(phrases), max(map(len, phrases))), -1, np.int32)
    for row, phrase in zip(banned_PW, phrases, strict=True):
        row[len(row) - len(phrase) :] = phrase
    return banned_PW
