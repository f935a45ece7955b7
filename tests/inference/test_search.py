"""Beam search with a real, tiny, random model: with its cache, compared with passes over whole prefixes without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_beam_search import normalization, plain_beam_search
from quick import jit

from transformer.config import ModelConfig
from transformer.inference import engine
from transformer.inference.beam_search import Options
from transformer.inference.constraints import Constraints
from transformer.inference.engine import MIN_ROWS, Strategy, decode
from transformer.model import build

PAD, BOS, EOS = 0, 1, 2
VOCABULARY, BEAMS, LONGEST, ALPHA = 12, 3, 9, 0.6
CONFIG = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=32, heads=4, kv_heads=2)


def random_params(model, seed):
    """Initial parameters with a sharper output: to an untrained model, all pieces are almost equally probable."""
    params = jit(model.init)(jax.random.key(seed))
    return jax.tree.map(lambda x: x * 1.7, params)


@functools.cache
def model_and_params():
    model = build(CONFIG.with_vocabulary(VOCABULARY))
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
    """Log-probabilities of the piece after each prefix of whole targets."""
    model, params = model_and_params()
    return jit(lambda source, target: jax.nn.log_softmax(model.apply(params, source, target)))


def found(source, limits, params=None):
    """(tokens, lengths, scores) of all rows; empty rows have no hypotheses."""
    model, own = model_and_params()
    plan = Strategy(Options(BEAMS, BOS, EOS, length_penalty=ALPHA))
    tokens = np.zeros((len(source), BEAMS, LONGEST), np.int32)
    lengths, scores = np.zeros((len(source), BEAMS), np.int32), np.full((len(source), BEAMS), -np.inf)
    for row, result in decode((model,), (own if params is None else params,), source, limits, plan):
        assert not result.tokens_BML[:, LONGEST:].any()
        tokens[row], lengths[row], scores[row] = result.tokens_BML[:, :LONGEST], result.lengths_BM, result.scores_BM
    return tokens, lengths, scores


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
                assert scores[b, m] == pytest.approx(total / normalization(n, ALPHA, "paper"), rel=1e-5)
                assert tokens[b, m, n - 1] == EOS and not set(tokens[b, m, : n - 1]) & {PAD, BOS, EOS}
    assert lengths[5, 0] <= 3 and lengths[7].tolist() == [1, 0, 0]
    assert (lengths[:, 0] < LIMITS).sum() > 2  # some end before the limit, some at it
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
    """With one compiled shape, that of the fewest rows: a sentence with others, with empty rows, in another row."""
    rows = MIN_ROWS
    others = sources(rows, 6, seed=1)
    for first in (0, rows):
        chosen, limits_of = SOURCE[first : first + rows], LIMITS[first : first + rows]
        together = found(chosen, limits_of)
        for i in range(rows):
            for seat, neighbours, limit in ((0, others, 9), (2, others, 4), (3, np.zeros_like(chosen), 0)):
                source, limits = neighbours.copy(), np.full(rows, limit, np.int32)
                source[seat], limits[seat] = chosen[i], limits_of[i]
                for alone, all_four in zip(found(source, limits), together, strict=True):
                    # A search that stops early guarantees only the best hypothesis, but the others are equal, too.
                    np.testing.assert_array_equal(alone[seat], all_four[i])


@pytest.mark.slow
def test_sentences_that_leave_change_nothing_for_those_that_stay(monkeypatch):
    """Limits from 1 to 40 in one batch. It shrinks to half and to a quarter, its cache is collected twice, and each
    sentence has the same result as alone."""
    model, params = model_and_params()
    # The end of sentence is improbable, so that most sentences end at their limits.
    plan = Strategy(Options(BEAMS, BOS, EOS, length_penalty=ALPHA), Constraints(EOS, 30))
    source, limits = sources(16, 6, seed=2), np.array([*range(1, 9), *range(33, 41)], np.int32)
    stages, rearrange = [], engine.rearrange

    def watched(memories, beams, index_B, *, length, keep, **over):
        memories, beams = rearrange(memories, beams, index_B, length=length, keep=keep, **over)
        stages.append((beams.tokens_BML.shape[::2], keep))
        return memories, beams

    monkeypatch.setattr(engine, "rearrange", watched)
    together = dict(decode((model,), (params,), source, limits, plan))
    assert sorted(together) == list(range(16))
    assert {rows for (rows, _), _ in stages} >= {8, 4} and {length for (_, length), _ in stages} >= {32, 64}
    # The cache keeps common parts of the beams once: fewer slots than positions times beams.
    assert None in {keep for _, keep in stages} and max(keep or 0 for _, keep in stages) < 40 * BEAMS
    exceptions = 0
    for i in range(16):
        ((_, alone),) = decode((model,), (params,), source[i : i + 1], limits[i : i + 1], plan)
        n = together[i].lengths_BM[0]
        # Sums of up to 40 log-probabilities, each within about 1e-5.
        np.testing.assert_allclose(together[i].scores_BM[0], alone.scores_BM[0], rtol=1e-5, atol=1e-5 * n)
        assert min(30, limits[i] - 1) < n <= limits[i]
        if together[i].tokens_BML[0, :n].tolist() != alone.tokens_BML[0, : alone.lengths_BM[0]].tolist():
            exceptions += 1
    assert exceptions <= 1


def test_an_empty_row_finds_nothing():
    tokens, lengths, scores = found(np.zeros_like(SOURCE), np.zeros(8, np.int32))
    assert not tokens.any() and not lengths.any() and (scores == -np.inf).all()


def test_a_broken_model_finds_nothing_and_ends():
    broken = jax.tree.map(lambda x: x * jnp.nan, model_and_params()[1])
    assert not found(SOURCE, LIMITS, broken)[1].any()
