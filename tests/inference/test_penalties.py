"""min-p, the penalty on repetition and stop strings by their formulas, in loops and against `transformers`."""

import jax.numpy as jnp
import numpy as np
import pytest
from plain_beam_search import plain_beam_search
from quick import jit
from whole_passes import BOS, EOS, PAD, SOURCE_LENGTH, TARGET_LENGTH, sources, translator

from transformer.inference.context import Past
from transformer.inference.sampling import filtered
from transformer.inference.stops import automaton, before, certain


def plain_min_p(logits, min_p):
    probs = np.exp(logits - logits.max())
    return np.where(probs < min_p, -np.inf, logits)


@pytest.mark.parametrize("min_p", [0.0, 0.1, 0.5, 1.0])
def test_min_p_by_hand(min_p):
    logits = (np.random.default_rng(0).normal(size=(40, 9)) * 2).astype(np.float32)
    found = np.asarray(filtered(jnp.asarray(logits), top_k=0, top_p=1.0, min_p=min_p))
    np.testing.assert_array_equal(found, [plain_min_p(row, min_p) for row in logits])
    assert min_p == 0 or (np.isfinite(found).sum(axis=1) < 9).any()
    # After top_k, whose most probable piece is the same.
    both = np.asarray(filtered(jnp.asarray(logits), top_k=3, top_p=1.0, min_p=min_p))
    three = np.asarray(filtered(jnp.asarray(logits), top_k=3, top_p=1.0))
    np.testing.assert_array_equal(both, np.where(np.isfinite(found), three, -np.inf))


@pytest.mark.parametrize("min_p", [-0.1, 1.5, "1", None])
def test_what_is_no_share_is_refused(min_p):
    with pytest.raises(ValueError, match=r"^min_p = .*: must be a number from 0 to 1$"):
        filtered(jnp.zeros((1, 3)), top_k=0, top_p=1.0, min_p=min_p)


def penalized(logits, pieces, penalty):
    """Logits of one hypothesis after these pieces."""
    past = Past((), jnp.zeros((1, 1, len(logits)), bool))
    for piece in pieces:
        past = past.use(jnp.array([piece]))
    return np.asarray(past.penalized(jnp.asarray(logits)[None], penalty))[0]


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_the_penalty_by_hand(penalty):
    logits, pieces = np.random.default_rng(1).normal(size=9).astype(np.float32), [3, 5, 3, 8]
    wanted = logits.copy()
    for piece in set(pieces):
        wanted[piece] = wanted[piece] / penalty if wanted[piece] > 0 else wanted[piece] * penalty
    np.testing.assert_allclose(penalized(logits, pieces, penalty), wanted, rtol=1e-6)


def test_as_in_transformers():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers").generation.logits_process
    logits, pieces = np.random.default_rng(2).normal(size=9).astype(np.float32) * 2, [3, 5, 3, 8]
    scores, ids = torch.tensor(logits[None]), torch.tensor([pieces])
    for penalty in (0.7, 1.4):
        wanted = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone()).numpy()[0]
        np.testing.assert_allclose(penalized(logits, pieces, penalty), wanted, rtol=1e-6)
    for min_p in (0.05, 0.3):
        wanted = theirs.MinPLogitsWarper(min_p)(ids, scores.clone()).numpy()
        found = filtered(jnp.asarray(logits[None]), top_k=0, top_p=1.0, min_p=min_p)
        np.testing.assert_array_equal(np.asarray(found), wanted)


def test_a_translation_with_a_penalty():
    """A beam search under penalized probabilities: the used pieces follow the beams."""
    ours = translator(beam_size=3, n_best=3, max_extra_length=8, repetition_penalty=1.8)
    whole = jit(lambda source, target: ours.model.apply(ours.params, source[None], target[None])[0])
    texts = sources(3, seed=3)
    found, plain = dict(ours.search(texts)), dict(translator(max_extra_length=8).search(texts))
    for i, source in enumerate(texts):
        padded = np.array([*source, EOS] + [PAD] * (SOURCE_LENGTH - 1 - len(source)))

        def log_probs(prefix, padded=padded):
            target = [BOS, *prefix]
            logits = whole(padded, np.array(target + [PAD] * (TARGET_LENGTH - len(target))))[len(prefix)]
            logits = np.float64(logits)
            for piece in set(target):
                logits[piece] = logits[piece] / 1.8 if logits[piece] > 0 else logits[piece] * 1.8
            log_probs = logits - np.log(np.exp(logits).sum())
            log_probs[[PAD, BOS]] = -np.inf
            return log_probs

        wanted = plain_beam_search(log_probs, len(source) + 9, 3, EOS, 0.6, "paper", min_length=3)
        np.testing.assert_allclose(found[i][1], [score for score, _ in wanted], rtol=1e-5)
        assert found[i][0] == [list(pieces[:-1]) for _, pieces in wanted]
    assert any(found[i][0][0] != plain[i][0][0] for i in range(3))


SPELLING = [b"", b"", b"", b"\xef\xbf\xbd", b"a", b"b", b"ab", b"ba", b"aba", b"\xc3", b"\xa4", "aä".encode(), b"bbbb"]


def test_stop_strings_are_found_where_the_text_holds_them():
    """Random pieces; a stop string inside a piece, across pieces, and across the bytes of a character."""
    draw, L = np.random.default_rng(0), 12
    for stops in (["aab"], ["bbb", "ä"], ["abaab", "baab", "aaa"], ["abab", "ba"], ["ab", "ab", "abb"], ["a" * 20]):
        found = automaton(stops, SPELLING)
        tokens = draw.integers(4, len(SPELLING), size=(40, 1, L))
        for at in (0, 1, 5, L):
            marked = np.asarray(found.found(jnp.asarray(tokens), jnp.int32(at)))[:, 0]
            for pieces, mark in zip(tokens[:, 0, :at], marked, strict=True):
                text = b"".join(SPELLING[i] for i in pieces)
                # A search has ended at the first one.
                earlier = b"".join(SPELLING[i] for i in pieces[:-1])
                if not any(stop.encode() in earlier for stop in stops):
                    assert mark == any(stop.encode() in text for stop in stops)


def test_a_long_stop_string_is_found():
    """Its automaton is made in linear time: a thousand bytes took half a minute."""
    found = automaton(["ab" * 500], SPELLING)
    tokens = np.full((1, 1, 1_001), SPELLING.index(b"ab"))
    tokens[0, 0, 0] = SPELLING.index(b"b")
    assert [bool(found.found(jnp.asarray(tokens), jnp.int32(at))[0, 0]) for at in (500, 501)] == [False, True]


def test_text_before_a_stop_string():
    assert before("abcabd", ["bd", "ca"]) == "ab" and before("abc", ["x"]) == "abc" and before("abc", []) == "abc"
    assert certain("abca", ["abd", "cat"]) == "ab" and certain("abc", ["x"]) == "abc" and certain("", ["ab"]) == ""
    assert certain("xaa", ["aab"]) == "x"
