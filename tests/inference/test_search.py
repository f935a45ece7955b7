"""Beam search with a real, tiny, random model: over its cache, against passes over whole prefixes without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_beam_search import normalization, plain_beam_search
from quick import jit

from transformer.config import ModelConfig
from transformer.inference.translator import search
from transformer.model import encoder_decoder

PAD, BOS, EOS = 0, 1, 2
VOCABULARY, BEAMS, LONGEST, ALPHA = 12, 3, 9, 0.6
CONFIG = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=32, heads=4, kv_heads=2)


def random_params(model, seed):
    """As at the start, but with a sharper output: an untrained model would find all pieces alike."""
    params = jit(model.init)(jax.random.key(seed))
    return jax.tree.map(lambda x: x * 1.7, params)


@functools.cache
def model_and_params():
    model = encoder_decoder(CONFIG, VOCABULARY)
    return model, random_params(model, 0)


def sources(rows, width, seed):
    draw = np.random.default_rng(seed)
    source = np.zeros((rows, width), np.int32)
    for row in source:
        n = draw.integers(2, width + 1)
        row[:n] = [*draw.integers(3, VOCABULARY, n - 1), EOS]
    return source


@functools.cache
def forward():
    """Log-probabilities of what follows each prefix of whole targets."""
    model, params = model_and_params()
    return jit(lambda source, target: jax.nn.log_softmax(model.apply(params, source, target)))


def found(source, limits):
    model, params = model_and_params()
    result = search(
        params, source, limits, model=model, max_length=LONGEST, beam_size=BEAMS, alpha=ALPHA, form="paper"
    )  # fmt: skip
    return jax.tree.map(np.asarray, result)


SOURCE = sources(8, 6, seed=0)
LIMITS = np.array([9, 9, 9, 7, 9, 3, 9, 1], np.int32)


def test_scores_are_those_of_a_full_forward_pass():
    tokens, lengths, scores = found(SOURCE, LIMITS)
    assert (lengths[:, 0] > 0).all() and len(np.unique(lengths)) > 3
    for m in range(BEAMS):
        target = np.concatenate([np.full((8, 1), BOS), tokens[:, m, :-1]], axis=1)
        log_probs = np.asarray(forward()(SOURCE, target), np.float64)
        for b, n in enumerate(lengths[:, m]):
            if n:
                total = sum(log_probs[b, t, tokens[b, m, t]] for t in range(n))
                assert scores[b, m] == pytest.approx(total / normalization(n, ALPHA, "paper"), abs=1e-5)
                assert tokens[b, m, n - 1] == EOS and not set(tokens[b, m, : n - 1]) & {PAD, BOS, EOS}
    assert lengths[5, 0] <= 3 and lengths[7].tolist() == [1, 0, 0]
    assert (lengths[:, 0] < LIMITS).sum() > 2  # some end of themselves, some are made to
    assert (lengths[:, 0] == LIMITS).sum() > 2


def test_equals_a_plain_beam_search_without_a_cache():
    tokens, lengths, scores = found(SOURCE, LIMITS)
    for b in range(8):

        @functools.cache
        def log_probs(prefix, b=b):
            target = np.full((8, LONGEST), PAD)
            target[b, : len(prefix) + 1] = [BOS, *prefix]
            following = np.array(forward()(SOURCE, target)[b, len(prefix)], np.float64)
            following[[PAD, BOS]] = -np.inf
            return following

        expected = plain_beam_search(log_probs, LIMITS[b], BEAMS, EOS, ALPHA, "paper")
        assert tokens[b, 0, : lengths[b, 0]].tolist() == list(expected[0][1])
        assert scores[b, 0] == pytest.approx(expected[0][0], abs=1e-5)


def test_neighbours_and_padding_rows_change_no_bit():
    """At one compiled shape: each sentence among others, among empty rows, and in another row."""
    together = found(SOURCE, LIMITS)
    others = sources(8, 6, seed=1)
    for i in range(8):
        for seat, neighbours, limit in ((0, others, 9), (5, others, 4), (7, np.zeros_like(SOURCE), 0)):
            source, limits = neighbours.copy(), np.full(8, limit, np.int32)
            source[seat], limits[seat] = SOURCE[i], LIMITS[i]
            for alone, all_eight in zip(found(source, limits), together, strict=True):
                # Behind the best, a search that stopped early promises nothing; it is equal all the same.
                np.testing.assert_array_equal(alone[seat], all_eight[i])


def test_an_empty_row_finds_nothing():
    tokens, lengths, scores = found(np.zeros_like(SOURCE), np.zeros(8, np.int32))
    assert not tokens.any() and not lengths.any() and (scores == -np.inf).all()


def test_a_broken_model_finds_nothing_and_ends():
    model, params = model_and_params()
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    result = search(
        broken, SOURCE, LIMITS, model=model, max_length=LONGEST, beam_size=BEAMS, alpha=ALPHA, form="paper"
    )  # fmt: skip
    assert not np.asarray(result.lengths_BM).any()
