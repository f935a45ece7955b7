"""Sampling: what is drawn, how often, and that draws depend only on the seed and the sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from whole_passes import EOS, PAD, following, sources, translator

from transformer.inference.beam_search import beam_search
from transformer.inference.sampling import filtered, sampled

BOS, VOCABULARY, DRAWS = 1, 6, 4000


def plain_filter(logits, top_k, top_p):
    """The pieces that may be drawn: from the most probable down, until there are `top_k`, or enough probability."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    probs = np.exp(logits[order] - logits[order].max())
    probs /= probs.sum()
    kept, total = [], 0.0
    for piece, prob in zip(order, probs, strict=True):
        if kept and total >= top_p:
            break
        kept.append(int(piece))
        total += prob
    return set(kept)


@pytest.mark.parametrize("top_k", [0, 1, 3, 9, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 1.0])
def test_filtered_by_hand(top_k, top_p):
    logits = (np.random.default_rng(0).normal(size=(40, 9)) * 2).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # many are equal
    logits[::3, 4] = -np.inf
    found = np.asarray(filtered(jnp.asarray(logits), top_k=top_k, top_p=top_p))
    for row, own in zip(found, logits, strict=True):
        kept = np.isfinite(row)
        np.testing.assert_array_equal(row[kept], own[kept])
        # If all pieces are allowed, impossible ones are allowed, too, and stay impossible.
        assert set(np.flatnonzero(kept)) == {i for i in plain_filter(own, top_k, top_p) if np.isfinite(own[i])}


@functools.partial(jit, static_argnames=("sentences", "options"))
def draw(table, temperature, top_k, top_p, sentences, options=None):
    """DRAWS samples of up to 3 pieces. The piece after each piece is distributed as table[piece]."""
    samples = DRAWS // sentences
    options = {"n_best": samples, "stop_early": False} if options is None else dict(options)
    return beam_search(
        lambda tokens_X, cache, at: (table[tokens_X], cache), (), jnp.full(sentences, 3), max_length=3,
        beam_size=samples, bos=BOS, eos=EOS, pad=PAD, length_penalty=0.0, **options,
        choose=sampled(jax.random.key(0), temperature=temperature, top_k=top_k, top_p=top_p),
        given={"number_B": jnp.arange(sentences)},
    )  # fmt: skip


def test_draws_are_the_same_where_jax_computes_in_64_bits():
    """A step may then give float64, such as a table of NumPy's."""
    table = peaked()
    expected = draw(table, 1.0, 0, 1.0, 2)
    with jax.enable_x64(True):
        found = draw(jnp.asarray(np.asarray(table), jnp.float64), 1.0, 0, 1.0, 2)
    np.testing.assert_array_equal(found.tokens_BML, expected.tokens_BML)
    np.testing.assert_allclose(found.scores_BM, expected.scores_BM, atol=1e-5)


def peaked():
    """Log-probabilities of the next piece after each piece; pad and bos are never drawn."""
    logits = np.random.default_rng(1).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32) * 1.5
    logits[:, [PAD, BOS]] = -np.inf
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def assert_fair(found, log_probs, probs):
    """Require all DRAWS samples, and pairs of first and second piece as often as `probs` gives: a draw depends on the
    pieces before it and on nothing else."""
    tokens, lengths = np.asarray(found.tokens_BML).reshape(DRAWS, 3), np.asarray(found.lengths_BM).reshape(DRAWS)
    assert (lengths > 0).all() and (lengths <= 3).all()
    together = probs[BOS][:, None] * probs
    together[EOS] = 0
    together[EOS, PAD] = probs[BOS, EOS]  # nothing follows
    counts = np.zeros_like(together)
    np.add.at(counts, (tokens[:, 0], tokens[:, 1]), 1)
    assert (counts[together == 0] == 0).all()
    # Five standard deviations: about one correct program in a million fails at one of these 17 numbers.
    np.testing.assert_array_less(abs(counts - DRAWS * together), 5 * np.sqrt(DRAWS * together * (1 - together)) + 1e-9)
    # Scores are the log-probabilities of the model, whatever the temperature, and sorted.
    assert (np.diff(found.scores_BM) <= 0).all()
    previous = np.concatenate([np.full((DRAWS, 1), BOS), tokens[:, :-1]], axis=1)
    own = np.where(np.arange(3) < lengths[:, None], log_probs[previous, tokens], 0.0).sum(axis=1)
    np.testing.assert_allclose(np.ravel(found.scores_BM), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sentences", [1, DRAWS])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0), (1.0, 2, 1.0), (2.0, 3, 0.6)]
)
def test_frequencies_are_probabilities(temperature, top_k, top_p, sentences):
    """All draws of one sentence, or one of each of many."""
    log_probs = peaked()
    probs = np.zeros((VOCABULARY, VOCABULARY))
    for row, own in zip(probs, log_probs.astype(np.float64), strict=True):
        kept = [i for i in plain_filter(own / temperature, top_k, top_p) if np.isfinite(own[i])]
        row[kept] = np.exp(own[kept] / temperature)
        row /= row.sum()
    assert_fair(draw(jnp.asarray(log_probs), temperature, top_k, top_p, sentences), log_probs, probs)


@pytest.mark.parametrize("options", [{}, {"n_best": 1}, {"n_best": 3}, {"n_best": 4}, {"stop_early": False}], ids=str)
def test_no_draw_is_lost_whatever_is_wanted_of_a_search(options):
    """Four samples per sentence, with options of a search and their defaults. Samples that end late or are improbable
    are drawn to their end, and as often as they should be."""
    log_probs = peaked()
    found = draw(jnp.asarray(log_probs), 1.0, 0, 1.0, DRAWS // 4, tuple(options.items()))
    assert_fair(found, log_probs, np.exp(log_probs.astype(np.float64)))


@pytest.mark.parametrize(
    "options",
    [{"temperature": t} for t in (0, 0.0, -1.0, float("nan"), float("inf"), "1", None, [1.0])]
    + [{"top_k": k} for k in (-1, 2.0, "3", None)]
    + [{"top_p": p} for p in (0, 0.0, -0.5, 1.1, float("nan"), "1", None)],
    ids=str,
)
def test_what_leaves_nothing_to_draw_is_refused(options):
    (name,) = options
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    with pytest.raises(ValueError, match=rf"^{name} = .*: must be "):
        beam_search(
            lambda tokens_X, cache, at: (jnp.asarray(peaked())[tokens_X], cache), (), jnp.array([3]), max_length=3,
            beam_size=2, bos=BOS, eos=EOS, pad=PAD, choose=sampled(jax.random.key(0), **options),
            given={"number_B": jnp.arange(1)},
        )  # fmt: skip


def test_draws_need_the_numbers_of_sentences():
    with pytest.raises(ValueError, match="sampling needs the numbers of the sentences"):
        beam_search(
            lambda tokens_X, cache, at: (jnp.asarray(peaked())[tokens_X], cache), (), jnp.array([3]), max_length=3,
            beam_size=2, bos=BOS, eos=EOS, choose=sampled(jax.random.key(0), temperature=1.0, top_k=0, top_p=1.0),
        )  # fmt: skip


@pytest.mark.parametrize("numbers", [np.arange(1), np.arange(3), np.ones(2), np.ones((2, 1), int)], ids=repr)
def test_each_sentence_needs_a_number(numbers):
    """One number for all would give all sentences the same draws."""
    with pytest.raises(ValueError, match=r"^number_B has the shape .*: give an integer for each of 2 sentences"):
        beam_search(
            lambda tokens_X, cache, at: (jnp.asarray(peaked())[tokens_X], cache), (), jnp.array([3, 3]), max_length=3,
            beam_size=1, bos=BOS, eos=EOS, choose=sampled(jax.random.key(0), temperature=1.0, top_k=0, top_p=1.0),
            given={"number_B": numbers},
        )  # fmt: skip


@pytest.mark.parametrize("key", [0, None, "0", jnp.zeros(3, jnp.uint32)], ids=repr)
def test_draws_need_a_key(key):
    with pytest.raises(ValueError, match=r"^key = .*: give a key, such as jax\.random\.key\(0\)$"):
        sampled(key, temperature=1.0, top_k=0, top_p=1.0)
    with pytest.raises(ValueError, match=r"^temperature = array\(\[\[1\., 1\.\], \[1\., 1\.\]\]\): must be"):
        sampled(jax.random.key(0), temperature=np.ones((2, 2)), top_k=0, top_p=1.0)


SAMPLE = {"sample": True, "n_best": 3}
TEXTS = sources(9, seed=1)


@functools.cache
def drawn(**decode):
    return dict(translator(**SAMPLE | decode).search(TEXTS))


def test_the_seed_decides():
    assert drawn() == dict(translator(**SAMPLE).search(TEXTS))
    other = drawn(seed=1)
    assert sum(drawn()[i][0] != other[i][0] for i in range(9)) > 6
    assert sum(drawn()[i][0] != drawn(temperature=3.0)[i][0] for i in range(9)) > 6


def test_neighbours_do_not():
    """Alone, in another order, in batches of other sizes: only the number of a sentence in the whole input counts."""
    for i in (0, 5, 8):
        ((_, (tokens, scores)),) = translator(**SAMPLE).search([TEXTS[i]], first=i)
        assert tokens == drawn()[i][0]
        np.testing.assert_allclose(scores, drawn()[i][1], rtol=1e-5)
    for rest in (slice(4, 9), slice(7, 9)):
        found = dict(translator(**SAMPLE, batch_sentences=8).search(TEXTS[rest], first=rest.start))
        assert [found[i][0] for i in range(len(found))] == [drawn()[i][0] for i in range(rest.start, 9)]
    lines = [" ".join(map(str, source)) for source in TEXTS]
    wanted = [" ".join(map(str, drawn()[i][0][0])) for i in range(5, 9)]
    assert translator(**SAMPLE).translate(lines[5:], first_line=6) == wanted
    # Two equal sentences have different draws.
    twice = dict(translator(**SAMPLE).search([TEXTS[0]] * 2))
    assert twice[0][0] == drawn()[0][0] != twice[1][0]


def test_all_samples_end_and_are_sorted():
    ours = translator(sample=True, n_best=9, max_extra_length=3, banned=("5", "6 7"), temperature=2.0)
    for i, (tokens, scores) in ours.search(TEXTS):
        assert len(tokens) == len(scores) == 9
        assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()
        assert len({tuple(pieces) for pieces in tokens}) > 4
        log_probs = following([(ours.model, ours.params)], TEXTS[i])
        for pieces, score in zip(tokens, scores, strict=True):
            assert min(3, len(TEXTS[i]) + 3) <= len(pieces) <= len(TEXTS[i]) + 3 and 5 not in pieces
            whole = [*pieces, EOS]
            total = sum(log_probs(tuple(whole[:t]))[piece] for t, piece in enumerate(whole))
            assert score == pytest.approx(total / ((5 + len(whole)) / 6) ** 0.6, rel=1e-5)


@pytest.mark.parametrize("decode", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_the_likeliest_piece_alone_is_greedy_search(decode):
    greedy = dict(translator(beam_size=1).search(TEXTS))
    found = dict(translator(**{"sample": True, **decode}).search(TEXTS))
    for i, (tokens, scores) in greedy.items():
        assert found[i][0] == tokens
        np.testing.assert_allclose(found[i][1], scores, rtol=1e-5)


def test_samples_count_in_the_budget_of_memory():
    """The budget counts positions times samples, whatever the beam size."""
    for decode in ({"beam_size": 8}, {"sample": True, "n_best": 8}, {"sample": True, "n_best": 8, "beam_size": 1}):
        assert translator(batch_tokens=8 * 8 * 2, **decode).batcher.rows(8) == 2
