"""Constraints on random models (tables of log-probabilities): beam search compared with the plain beam search."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from plain_beam_search import plain_beam_search
from quick import jit

from transformer.data.tokenizer import Cut
from transformer.inference.beam_search import beam_search
from transformer.inference.constraints import Constraints
from transformer.inference.prefixes import Prefixes

PAD, BOS, EOS, VOCABULARY, LONGEST, ROWS = 0, 1, 2, 7, 9, 12


@functools.cache
def tables():
    """log_probs[sentence, position, last piece but one, last piece, V]; pad and bos are forbidden."""
    logits = np.random.default_rng(0).normal(size=(ROWS, LONGEST, VOCABULARY, VOCABULARY, VOCABULARY)) * 1.5
    logits[..., EOS] -= 1.5
    logits[..., [PAD, BOS]] = -np.inf
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def following(sentence):
    """The log-probabilities of one sentence, for the plain search."""
    return lambda words: tables()[sentence, len(words), *(BOS, BOS, *words)[-2:]].astype(np.float64)


class Letters:
    """A tokenizer in which each piece spells a different letter."""

    spelling = (b"", b"", b"", *(bytes([65 + i]) for i in range(3, VOCABULARY)))

    def prefix(self, text):
        return text

    def ends_in_space(self, text):
        return False

    def cut(self, lines):
        ids = [[ord(c) - 65 for c in line] for line in lines]
        return [Cut(line, [self.spelling[i] for i in line]) for line in ids]


@functools.partial(jit, static_argnames=("M", "form", "n_best"))
def search(limits, alpha, constraints, given, *, M, form, n_best):
    table = jnp.asarray(tables())

    def step(tokens_X, cache, at):
        sentence, before = cache
        return table[sentence, at, before, tokens_X], (sentence, tokens_X)

    cache = jnp.repeat(jnp.arange(ROWS), M), jnp.full(ROWS * M, BOS)
    return beam_search(
        step, cache, limits, max_length=LONGEST, beam_size=M, bos=BOS, eos=EOS, pad=PAD, length_penalty=alpha,
        length_normalization=form, n_best=n_best, adjust=constraints.adjust, given=given,
    )  # fmt: skip


def padded(phrases):
    """Phrases as one array, padded with -1 on the left."""
    result = np.full((len(phrases), max(map(len, phrases))), -1, np.int32)
    for row, phrase in zip(result, phrases, strict=True):
        row[len(row) - len(phrase) :] = phrase
    return result


LIMITS = np.array([9, 9, 9, 9, 9, 9, 8, 6, 4, 2, 1, 0])
BANNED = [(3,), (4, 5), (5, 5, 6), (EOS,)]
PREFIXES = [(), (3,), (4, 4), (5, 4, 5, 4), (6,), (3, 3, 3), (), (4, 5), (3, 4), (5,), (6,), ()]


def check(M, form, alpha, *, n_best=1, min_length=0, banned=(), no_repeat_ngram=0, prefixes=None):
    """Require the results of the plain search. Returns the best output of each sentence, without eos."""
    letters = Prefixes(Letters())
    spelling = None if prefixes is None else letters.spelling
    phrases = padded(banned) if banned else None
    constraints = Constraints(EOS, min_length, phrases, no_repeat_ngram, spelling)
    prefixes = prefixes or [()] * ROWS
    given = letters.tables(ROWS, max(map(len, prefixes)))
    for row, prefix in enumerate(letters.of(["".join(chr(65 + i) for i in own) for own in prefixes])):
        letters.fill(given, row, prefix)
    found = search(LIMITS, alpha, constraints, given, M=M, form=form, n_best=n_best)
    best = []
    for b in range(ROWS):
        expected = plain_beam_search(
            following(b), LIMITS[b], M, EOS, alpha, form,
            min_length=min_length, banned=banned, no_repeat_ngram=no_repeat_ngram, prefix=prefixes[b],
        )[:n_best]  # fmt: skip
        scores, lengths = (np.asarray(x)[b, :n_best] for x in (found.scores_BM, found.lengths_BM))
        assert (lengths > 0).sum() == len(expected)
        np.testing.assert_allclose(scores[: len(expected)], [score for score, _ in expected], rtol=1e-5, atol=1e-5)
        pieces = [tuple(np.asarray(found.tokens_BML)[b, m, :n].tolist()) for m, n in enumerate(lengths) if n]
        assert pieces == [pieces for _, pieces in expected]
        best.append(pieces[0][:-1] if pieces else None)
    return best


def test_without_wishes():
    free = check(3, "paper", 0.6, n_best=3)
    assert check(1, "paper", 0.6) != free
    # Without constraints, the outputs break each of the constraints that the tests below use.
    assert any(len(pieces) < 5 for pieces in free[:6])
    assert any(3 in pieces for pieces in free if pieces)
    assert any(len(set(pieces)) < len(pieces) for pieces in free if pieces)


@pytest.mark.parametrize(("M", "form", "n_best"), [(1, "fairseq", 1), (3, "paper", 2)])
def test_minimum_length(M, form, n_best):
    for wanted in (1, 5, 20):
        best = check(M, form, 1.0, n_best=n_best, min_length=wanted)
        for pieces, limit in zip(best, LIMITS, strict=True):
            assert pieces is None or len(pieces) >= min(wanted, limit - 1)  # the limit takes precedence


@pytest.mark.parametrize(("M", "form", "n_best"), [(1, "paper", 1), (3, "none", 3)])
def test_banned_phrases(M, form, n_best):
    """Phrases of one, two and three pieces. Also eos, which comes at the limit nevertheless."""
    best = check(M, form, 0.6, n_best=n_best, banned=BANNED[:3])
    assert not any(3 in pieces for pieces in best if pieces)
    assert [len(p) + 1 for p in check(M, form, 0.6, n_best=n_best, banned=[(EOS,)])[:11]] == LIMITS[:11].tolist()


@pytest.mark.parametrize(("M", "n"), [(1, 2), (3, 1), (3, 2), (3, 3), (3, 12)])
def test_no_ngram_twice(M, n):
    """Outputs without repetition cannot always have the minimum length. Then fewer hypotheses are found, or none."""
    for min_length in (0, 4, 6):
        for pieces in check(M, "fairseq", 0.6, n_best=M, no_repeat_ngram=n, min_length=min_length):
            ngrams = [pieces[i : i + n] for i in range(len(pieces or ()) - n + 1)]
            assert len(set(ngrams)) == len(ngrams)


@pytest.mark.parametrize(("M", "n_best"), [(1, 1), (3, 3)])
def test_forced_prefixes(M, n_best):
    best = check(M, "paper", 0.6, n_best=n_best, prefixes=PREFIXES)
    for pieces, prefix, limit in zip(best, PREFIXES, LIMITS, strict=True):
        # The limit takes precedence.
        assert pieces is None or pieces[: len(prefix)] == prefix[: limit - 1]


@pytest.mark.parametrize(("M", "form", "n_best"), [(1, "none", 1), (2, "fairseq", 1), (4, "paper", 4)])
def test_all_wishes_at_once(M, form, n_best):
    """The prefixes repeat n-grams, contain banned phrases and are shorter than the minimum. They are kept anyway."""
    for alpha, min_length in ((0.0, 3), (0.6, 5), (2.0, 4)):
        wishes = {"min_length": min_length, "banned": BANNED[:3], "no_repeat_ngram": 2}
        best = check(M, form, alpha, n_best=n_best, prefixes=PREFIXES, **wishes)
        assert best[5][:3] == (3, 3, 3) and 3 not in best[5][3:]


def test_no_way_out_is_no_hypothesis():
    """All words are banned and eos comes too early: there is only eos at the limit, or no hypothesis."""
    best = check(3, "paper", 0.6, n_best=3, banned=[(w,) for w in range(3, VOCABULARY)], min_length=1)
    assert [pieces is None for pieces in best] == [limit != 1 for limit in LIMITS]
