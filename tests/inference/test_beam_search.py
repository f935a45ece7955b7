"""Beam search over trees of random log-probabilities: a table has different ones for each prefix of each sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_beam_search import normalization, plain_beam_search
from quick import jit

from transformer.config import ModelConfig
from transformer.inference.beam_search import beam_search, penalty
from transformer.model.cache import empty_cache

PAD, BOS, EOS = 0, 1, 2
WORDS = (3, 4, 5)
VOCABULARY = 6
FORMS = ["paper", "fairseq", "none"]


def child(prefix, word):
    """Prefixes are numbered like the nodes of a ternary tree; the empty prefix is 0."""
    return 3 * prefix + word - 2


def random_tables(sentences, depth, *, seed, spread=1.0):
    """log_probs (sentences, prefixes of fewer than `depth` words, V); pad and bos are forbidden."""
    prefixes = (3**depth - 1) // 2
    logits = np.random.default_rng(seed).normal(size=(sentences, prefixes, VOCABULARY)) * spread
    logits[..., [PAD, BOS]] = -np.inf
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def lookup(table):
    """The log-probabilities of one sentence after a prefix, for the plain searches."""
    return lambda words: table[functools.reduce(child, words, 0)].astype(np.float64)


@functools.partial(jit, static_argnames=("M", "form", "n_best", "stop_early", "length"))
def search(tables, limits, alpha, *, M, form, length, n_best=1, stop_early=True):
    tables = jnp.asarray(tables)

    def step(tokens_X, cache, at):
        sentence, prefix = cache
        prefix = jnp.where(at == 0, 0 * prefix, child(prefix, tokens_X))
        return tables[sentence, prefix], (sentence, prefix)

    # The rows of the cache move with the beams. The prefixes need that; sentence numbers stay the same anyway.
    cache = jnp.repeat(jnp.arange(len(tables)), M), jnp.full(len(tables) * M, 99)
    return beam_search(
        step, cache, jnp.asarray(limits), max_length=length, beam_size=M, bos=BOS, eos=EOS, pad=PAD,
        length_penalty=alpha, length_normalization=form, n_best=n_best, stop_early=stop_early,
    )  # fmt: skip


def hypotheses(found, sentence):
    """[(score, pieces)] of one sentence. Also checks the rules that hold for all results."""
    tokens, lengths, scores = (np.asarray(x)[sentence] for x in found)
    assert (np.diff(scores[np.isfinite(scores)]) <= 0).all()
    assert not np.isnan(scores).any()
    count = int((lengths > 0).sum())
    assert (lengths[:count] > 0).all() and np.isfinite(scores[:count]).all()
    assert (scores[count:] == -np.inf).all()
    result = []
    for row, n, score in zip(tokens, lengths, scores, strict=True):
        assert (row[n:] == PAD).all()
        if n:
            assert row[n - 1] == EOS and set(row[: n - 1]) <= set(WORDS)
            result.append((score, tuple(row[:n].tolist())))
    return result


def assert_same(got, expected):
    """Require the same pieces in the same order, and the same scores. Neighbours within rounding may be swapped."""
    assert len(got) == len(expected)
    np.testing.assert_allclose([s for s, _ in got], [s for s, _ in expected], atol=1e-5, rtol=1e-5)
    gaps = -np.diff([np.inf, *(s for s, _ in expected), -np.inf])
    for i, ((_, pieces), (_, wanted)) in enumerate(zip(got, expected, strict=True)):
        if min(gaps[i], gaps[i + 1]) > 1e-5:
            assert pieces == wanted


def all_hypotheses(log_probs, limit, alpha, form):
    """Every complete hypothesis of a sentence by brute force, best first."""
    found = []

    def extend(total, words):
        if len(words) < limit:
            following = log_probs(words)
            ended = total + following[EOS]
            found.append((ended / normalization(len(words) + 1, alpha, form), (*words, EOS)))
            for word in WORDS:
                extend(total + following[word], (*words, word))

    extend(0.0, ())
    return sorted(found, reverse=True)


def test_penalty_by_hand():
    assert penalty(1, 0.6, "paper") == 1
    np.testing.assert_allclose(penalty(7, 0.6, "paper"), 1.515717, rtol=1e-6)
    np.testing.assert_allclose(penalty(jnp.array([1, 4, 9]), 0.5, "fairseq"), [1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(penalty(jnp.array([1, 9]), 0.6, "none"), [1, 1])
    for form in FORMS:
        assert penalty(9, 0.0, form) == 1
    with pytest.raises(ValueError, match="'google'"):
        penalty(1, 0.6, "google")


@pytest.mark.parametrize("form", FORMS)
def test_a_beam_wide_enough_finds_what_brute_force_finds(form):
    """All hypotheses, in order; limits of 0 to 4 pieces in one batch."""
    tables, limits = random_tables(15, 4, seed=1, spread=2), np.arange(15) % 5
    for alpha in (0.0, 0.6, 1.0, 3.0):
        found = search(tables, limits, alpha, M=40, form=form, length=4, n_best=40)
        for i, limit in enumerate(limits):
            expected = all_hypotheses(lookup(tables[i]), limit, alpha, form)
            assert len(expected) == [0, 1, 4, 13, 40][limit]
            assert_same(hypotheses(found, i), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("M", [2, 3])
def test_equals_a_plain_beam_search(form, M):
    tables, limits = random_tables(60, 4, seed=2), np.arange(60) % 5
    for alpha in (0.6, 2.0):
        found = search(tables, limits, alpha, M=M, form=form, length=4, stop_early=False)
        for i, limit in enumerate(limits):
            expected = plain_beam_search(lookup(tables[i]), limit, M, EOS, alpha, form)
            assert_same(hypotheses(found, i), expected)


def test_a_beam_of_2_finds_what_greedy_misses():
    """0.6 * 0.5 against 0.4 * 1."""
    table = np.full((1, 4, VOCABULARY), -np.inf, np.float32)
    table[0, 0, [3, 4]] = np.log([0.6, 0.4])
    table[0, child(0, 3), [EOS, 3]] = np.log([0.5, 0.5])
    table[0, child(0, 4), EOS] = 0.0
    for M, pieces, probability in ((1, (3, EOS), 0.3), (2, (4, EOS), 0.4)):
        found = search(table, [2], 0.0, M=M, form="none", length=2)
        score, best = hypotheses(found, 0)[0]
        assert best == pieces
        assert score == pytest.approx(np.log(probability), abs=1e-6)


@pytest.mark.parametrize("form", ["paper", "none"])
def test_a_beam_of_1_is_greedy(form):
    """Even if eos, or the second best piece, would have scored better in the end."""
    tables, limits = random_tables(200, 4, seed=3), np.arange(200) % 4 + 1
    for stop_early in (True, False):
        found = search(tables, limits, 2.0, M=1, form=form, length=4, stop_early=stop_early)
        for i, limit in enumerate(limits):
            words, total, piece = (), 0.0, None
            while piece != EOS:
                following = lookup(tables[i])(words)
                piece = EOS if len(words) + 1 == limit else int(following.argmax())
                total, words = total + following[piece], (*words, piece)
            assert_same(hypotheses(found, i), [(total / normalization(len(words), 2.0, form), words)])


@pytest.mark.parametrize("form", FORMS)
def test_stopping_early_changes_no_result(form):
    M, B, depth = 3, 400, 5
    limits = np.random.default_rng(0).integers(1, depth + 1, size=B)
    tables = random_tables(B, depth, seed=4, spread=1.5)
    stopped = 0
    for n_best in (1, 2, 3):
        run = functools.partial(search, tables, limits, M=M, form=form, length=depth, n_best=n_best)
        for alpha in (0.0, 0.6, 1.5):
            early, late = run(alpha=alpha), run(alpha=alpha, stop_early=False)
            for a, b in zip(early, late, strict=True):
                np.testing.assert_allclose(a[:, :n_best], b[:, :n_best], rtol=1e-6)
            stopped += int((np.asarray(early.scores_BM) != np.asarray(late.scores_BM)).any(axis=1).sum())
    # The search did stop early: the hypotheses after the n best, which may change, did change.
    assert stopped > B / 4


def test_neighbours_change_nothing():
    """Bit for bit: with neighbours that are longer, shorter or empty, and in other rows."""
    limits = np.array([4, 3, 4, 2])
    tables, others = random_tables(4, 4, seed=5, spread=2), random_tables(4, 4, seed=6, spread=0.1)
    run = functools.partial(search, alpha=0.6, M=3, form="paper", length=4)
    together = run(tables, limits)
    for i in range(4):
        for seat, other_limit in ((0, 4), (2, 0), (3, 1)):
            mixed, mixed_limits = others.copy(), np.full(4, other_limit)
            mixed[seat], mixed_limits[seat] = tables[i], limits[i]
            for alone, all_four in zip(run(mixed, mixed_limits), together, strict=True):
                np.testing.assert_array_equal(alone[seat], all_four[i])


def test_forbidden_pieces_leave_fewer_hypotheses():
    """-inf forbids a piece: only two paths lead to an end here. NaN forbids a piece, too."""
    tables = np.full((4, 4, VOCABULARY), -np.inf, np.float32)
    tables[:, 0, [3, 4]] = np.log([0.7, 0.3])
    tables[0, child(0, 3), EOS] = np.log(0.5)
    tables[0, child(0, 4), EOS] = np.log(0.25)
    tables[1, child(0, 4), EOS] = 0.0
    tables[3] = np.nan
    found = search(tables, [2, 2, 2, 2], 0.0, M=3, form="none", length=2)
    assert_same(hypotheses(found, 0), [(np.log(0.35), (3, EOS)), (np.log(0.075), (4, EOS))])
    assert_same(hypotheses(found, 1), [(np.log(0.3), (4, EOS))])
    assert np.asarray(found.lengths_BM).tolist() == [[2, 2, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_step_sees_bos_and_then_what_it_chose():
    seen = []

    def step(tokens_X, cache, at):
        jax.debug.callback(lambda tokens, at: seen.append((int(at), tokens.tolist())), tokens_X, at, ordered=True)
        return jnp.log(jnp.array([[0, 0, 0.1, 0.2, 0.7, 0]])).repeat(2, axis=0), cache

    found = beam_search(
        step, (), jnp.array([2, 2]), max_length=2, beam_size=1, bos=BOS, eos=EOS, length_penalty=0.6, pad=9
    )  # fmt: skip
    jax.effects_barrier()
    assert seen == [(0, [BOS, BOS]), (1, [4, 4])]
    assert np.asarray(found.tokens_BML).tolist() == [[[4, EOS]]] * 2


# ---- Mistakes in a call ---------------------------------------------------------------------------------------------

RIGHT = {"max_length": 3, "beam_size": 2, "bos": BOS, "eos": EOS, "pad": PAD}


def plain(limits=(3,), rows=2, columns=VOCABULARY, **options):
    """A search of one sentence with two beams over constant log-probabilities, with valid or invalid options."""
    step = lambda tokens_X, cache, at: (jnp.full((rows, columns), -1.8), cache)  # noqa: E731
    limits = jnp.array(limits) if isinstance(limits, tuple) else limits
    return beam_search(step, options.pop("cache", ()), limits, **RIGHT | options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam_size": 0}, "beam_size = 0: must be at least 1"),
        ({"beam_size": "2"}, "beam_size = '2': must be an integer"),
        ({"beam_size": 2.0}, "beam_size = 2.0: must be an integer"),
        ({"n_best": 0}, "n_best = 0: must be at least 1, at most 2"),
        ({"n_best": 3}, "n_best = 3: must be at least 1, at most 2"),
        ({"n_best": True}, "n_best = True: must be an integer"),
        ({"max_length": 0}, "max_length = 0: must be at least 1"),
        ({"eos": -1}, "eos = -1: must be at least 0"),
        ({"bos": None}, "bos = None: must be an integer"),
        ({"pad": 1.5}, "pad = 1.5: must be an integer"),
        ({"length_penalty": -0.1}, "length_penalty = -0.1: must be a finite number, 0 or more"),
        ({"length_penalty": float("nan")}, "length_penalty = nan"),
        ({"length_penalty": "0.6"}, "length_penalty = '0.6'"),
        ({"length_penalty": None}, "length_penalty = None"),
        ({"length_normalization": "google"}, "length_normalization = 'google': must be one of paper, fairseq, none"),
        ({"limits": (4,)}, "limit_B has 4: must be at most max_length, 3"),
        ({"limits": (1.5,)}, "limit_B must be an array of integers"),
        ({"limits": ((3,),)}, "limit_B must be an array of integers"),
        ({"limits": [3]}, "limit_B must be an array of integers"),
        ({"limits": 3}, "limit_B must be an array of integers"),
        ({"bos": 2**40}, "bos = 1099511627776: must be at least 0, at most 2147483647"),
        ({"pad": 2**40}, "pad = 1099511627776: must be at least 0, at most 2147483647"),
        ({"limits": jnp.zeros(0, int)}, "limit_B must be an array of integers"),
        ({"length_penalty": [[1], [1, 2]]}, "length_penalty = [[1], [1, 2]]: must be a finite number"),
        ({"length_penalty": [1.0]}, "length_penalty = [1.0]: must be a finite number"),
        ({"length_penalty": np.ones(2)}, "length_penalty = array([1., 1.]): must be a finite number"),
        ({"rows": 1}, "the step gives log-probabilities of shape (1, 6): it must give 2 rows"),
        ({"columns": 2}, "the step gives log-probabilities of shape (2, 2): it must give 2 rows"),
        ({"eos": 6}, "the step gives log-probabilities of shape (2, 6): it must give 2 rows"),
        ({"cache": jnp.zeros(1)}, "the cache holds an array of shape (1,): each needs 2 leading rows"),
        ({"cache": {"at": jnp.int32(0)}}, "the cache holds an array of shape (): each needs 2 leading rows"),
        ({"beam_size": 2**40}, "beam_size = 1099511627776: must be at least 1, at most 2147483647"),
        ({"max_length": 2**40}, "max_length = 1099511627776: must be at least 1, at most 2147483647"),
        ({"beam_size": np.ones((2, 2))}, "beam_size = array([[1., 1.], [1., 1.]]): must be an integer"),
        ({"length_penalty": np.ones((2, 2))}, "length_penalty = array([[1., 1.], [1., 1.]]): must be a finite number"),
        ({"length_normalization": np.ones((2, 2))}, "length_normalization = array([[1., 1.], [1., 1.]]): must be one"),
        ({"cache": "keys"}, "cache holds something else than arrays"),
        ({"cache": {"keys": {1, 2}}}, "cache holds something else than arrays"),
        ({"given": [10**30]}, "given holds something else than arrays"),
        ({"given": {"name": "a"}}, "given holds something else than arrays"),
        ({"reorder": None}, "reorder = None: give a function"),
        ({"cut": "no"}, "cut = 'no': must be True or False"),
        ({"stop_early": 0}, "stop_early = 0: must be True or False"),
        ({"adjust": True}, "adjust = True: give a function"),
        ({"choose": "sampled"}, "choose = 'sampled': give a function"),
    ],
    ids=str,
)
def test_options_that_make_no_search_are_named(wrong, message):
    """Without checks, XLA would take the last row or the first hypothesis, or stop before any hypothesis has ended."""
    with pytest.raises(ValueError) as error:
        plain(**wrong)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_step_that_gives_a_list_is_named():
    with pytest.raises(ValueError, match=r"^the step gives a list: it must give an array of log-probabilities"):
        beam_search(lambda tokens_X, cache, at: ([[-1.0] * 6] * 2, cache), (), jnp.array([3]), **RIGHT)


def test_log_probabilities_are_floats():
    step = lambda tokens_X, cache, at: (jnp.zeros((2, VOCABULARY), jnp.complex64), cache)  # noqa: E731
    with pytest.raises(ValueError, match=r"^the step gives log-probabilities of type complex64: it must give floats"):
        beam_search(step, (), jnp.array([3]), **RIGHT)


@pytest.mark.parametrize("hook", ["adjust", "choose"])
@pytest.mark.parametrize("result", [None, jnp.zeros(3), (jnp.zeros((1, 4)),)], ids=lambda x: str(type(x)))
def test_a_hook_that_gives_something_else_is_named(hook, result):
    step = lambda tokens_X, cache, at: (jnp.zeros((2, VOCABULARY)), cache)  # noqa: E731
    with pytest.raises(ValueError, match=rf"^{hook} (gives|must give) "):
        beam_search(step, (), jnp.array([3]), **RIGHT, **{hook: lambda log_probs_BMV, beams: result})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda x: (x[:, 0, :1], np.zeros((1, 1), int), np.full((1, 1), 3)), "each (1, 2 or more); they are (1, 1)"),
        (lambda x: (x[:, 0, :4], np.zeros((1, 3), int), np.zeros((1, 4), int)), "they are (1, 4), (1, 3), (1, 4)"),
        (lambda x: (x[0, 0], np.zeros(6, int), np.zeros(6, int)), "they are (6,), (6,), (6,)"),
        (lambda x: (x[:, 0, :4], np.zeros((1, 4)), np.zeros((1, 4), int)), "are integers, not float32 and int32"),
        (lambda x: (x[:, 0], {1}, 0), "choose must give three arrays: log-probabilities, parents and pieces"),
    ],
)
def test_continuations_of_another_form_are_named(given, told):
    step = lambda tokens_X, cache, at: (jnp.full((2, VOCABULARY), -1.8), cache)  # noqa: E731
    with pytest.raises(ValueError, match=r"^choose must give three arrays: .*") as error:
        beam_search(step, (), jnp.array([3]), **RIGHT, choose=lambda log_probs_BMV, beams: given(log_probs_BMV))
    assert told in str(error.value)


def test_continuations_may_be_numpy_arrays_and_lists():
    """One hypothesis goes on with piece 4 at each step, the other one with 5."""
    step = lambda tokens_X, cache, at: (jnp.full((2, VOCABULARY), -1.8), cache)  # noqa: E731
    ours = lambda log_probs_BMV, beams: (np.array([[-1.0, -2.0]]), [[0, 1]], np.array([[4, 5]]))  # noqa: E731
    found = beam_search(step, (), jnp.array([3]), **RIGHT, cut=True, choose=ours)
    assert found.tokens_BML[0].tolist() == [[4, 4, 4], [5, 5, 5]]


@pytest.mark.parametrize(
    "result", [None, 1.5, jnp.zeros((2, 6)), (jnp.zeros((2, 6)), (), 0)], ids=lambda x: str(type(x))
)
def test_a_step_that_gives_no_pair_is_named(result):
    with pytest.raises(ValueError, match=r"^the step gives a \w+: it must give a pair, log-probabilities and cache"):
        beam_search(lambda tokens_X, cache, at: result, (), jnp.array([3]), **RIGHT)
    with pytest.raises(ValueError, match=r"^step = None: give a function$"):
        beam_search(None, (), jnp.array([3]), **RIGHT)


@pytest.mark.parametrize(
    "grown",
    [
        *(lambda cache: None, lambda cache: (cache, cache)),
        *(lambda cache: cache[:, :1], lambda cache: cache.astype(jnp.int32)),
    ],
)
def test_a_cache_that_changes_its_form_is_named(grown):
    """Of the step or of `reorder`: a loop of a fixed program can't hold it."""
    cache, log_probs_XV = jnp.zeros((2, 3)), jnp.full((2, VOCABULARY), -1.8)
    told = r"^step and reorder must give a cache with the structure, the shapes and the types of the one that they get"
    with pytest.raises(ValueError, match=told):
        beam_search(lambda tokens_X, cache, at: (log_probs_XV, grown(cache)), cache, jnp.array([3]), **RIGHT)
    step = lambda tokens_X, cache, at: (log_probs_XV, cache)  # noqa: E731
    with pytest.raises(ValueError, match=told):
        beam_search(step, cache, jnp.array([3]), **RIGHT, reorder=lambda cache, parents_BM: grown(cache))


def test_a_cache_that_is_too_short_is_told():
    """Else later pieces would overwrite earlier ones, since the loop is a fixed program that checks no values."""
    cache = empty_cache(ModelConfig(1, 1, 8, 8, 2, vocab_size=VOCABULARY), 1, 2, RIGHT["beam_size"])
    step = lambda tokens_X, cache, at: (jnp.full((2, VOCABULARY), -1.8), cache)  # noqa: E731
    told = r"^the cache has room for 2 positions: give init_cache\(length=3\), or a max_length of at most 2$"
    for given in (cache, (cache, jnp.zeros(2))):
        with pytest.raises(ValueError, match=told):
            beam_search(step, given, jnp.array([3]), **RIGHT)
    told = r"^the cache has room for 2 positions and holds 1 already: give init_cache\(length=4\), or"
    with pytest.raises(ValueError, match=told):
        beam_search(step, cache._replace(end=jnp.int32(2)), jnp.array([3]), **RIGHT)
    beam_search(step, cache, jnp.array([2]), **{**RIGHT, "max_length": 2}, reorder=lambda cache, parents_BM: cache)


def test_right_options_in_other_forms_are_taken():
    wanted = plain()
    for options in (
        {"length_penalty": np.float32(0.6)},
        {"length_penalty": jnp.float32(0.6)},
        {"beam_size": np.int8(2)},
    ):
        jax.tree.map(np.testing.assert_array_equal, plain(**options), wanted)
    # Inside jit the values of arrays are not known, and not checked.
    inside = jit(lambda limits, alpha: plain(limits, length_penalty=alpha))(jnp.array([3]), 0.6)
    jax.tree.map(np.testing.assert_array_equal, inside, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_tell_where_log_probabilities_are_no_numbers(value):
    """NaN instead of -inf where hypotheses are missing. A single piece with NaN is only forbidden."""
    tables = random_tables(4, 3, seed=7)
    tables[1] = value  # everywhere
    tables[2, 1:] = value  # after the first piece
    tables[3, :, 3] = value  # one piece
    found = search(tables, [3, 3, 3, 3], 0.6, M=3, form="paper", length=3, stop_early=False)
    lengths, scores = np.asarray(found.lengths_BM), np.asarray(found.scores_BM)
    assert (lengths[0] > 0).all() and np.isfinite(scores[0]).all()
    assert (lengths[1] == 0).all() and np.isnan(scores[1]).all()
    assert lengths[2].tolist() == [1, 0, 0] and np.isfinite(scores[2, 0]) and np.isnan(scores[2, 1:]).all()
    assert (lengths[3] > 0).all() and np.isfinite(scores[3]).all()
    assert not (np.asarray(found.tokens_BML)[3] == 3).any()
    # If all pieces are forbidden, the score is -inf, not NaN.
    nothing = search(np.full_like(tables, -np.inf), [3] * 4, 0.6, M=3, form="paper", length=3)
    assert (np.asarray(nothing.scores_BM) == -np.inf).all()
