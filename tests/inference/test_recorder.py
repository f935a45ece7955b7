"""The recorded search: its outputs and scores are those of the compiled one, and its record is consistent."""

import dataclasses
import inspect
import math
import threading

import generators
import jax
import numpy as np
import pytest
from quick import jit
from test_search import CONFIG, EOS, VOCABULARY, random_params, sources

from transformer import Translator
from transformer.config import DecodeConfig
from transformer.inference import recorder
from transformer.inference.beam_search import Options
from transformer.inference.constraints import Constraints
from transformer.inference.engine import Strategy, decode
from transformer.inference.programs import Sampler
from transformer.inference.recorder import ROOT, record
from transformer.model import build

LIMITS = np.array([9, 3, 0, 12], np.int32)
MANY = np.array([9, 9, 9, 7, 9, 3, 9, 1, 0, 40], np.int32)
SENTENCES = ["red cat sees the big dog", "a small green bird", "", "old house finds new tree car dog dog dog cat"]
OPTIONS = {
    "beam 3": {},
    "greedy": {"beam_size": 1},
    "all of a beam, alpha 1.5": {"beam_size": 4, "n_best": 4, "length_penalty": 1.5},
    "length^alpha": {"length_normalization": "fairseq", "length_penalty": 1.0},
    "cut": {"cut": True, "n_best": 3},
    "constrained": {"constraints": Constraints(EOS, 3, np.array([[4, 5]], np.int32), 2)},
    "sampled": {"sampler": Sampler(jax.random.key(3), 1.3, 6, 0.9), "n_best": 3},
    "sampled twice the same": {"sampler": Sampler(jax.random.key(3), 0.2), "beam_size": 4, "n_best": 4},
    "penalty": {"repetition_penalty": 1.4},
}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "observe", jit(inspect.unwrap(recorder.observe), static_argnames=_STATIC))
        yield


_STATIC = [p.name for p in inspect.signature(recorder.observe).parameters.values() if p.kind == p.KEYWORD_ONLY]


def strategy(*, constraints=None, sampler=None, repetition_penalty=None, **options):
    found = Options(**{"beam_size": 3, "bos": 1, "eos": EOS, "length_penalty": 0.6, **options})
    return Strategy(found, constraints, sampler, repetition_penalty)


def consistent(one, options, samples=False):
    """Check what the fields of a record promise, whatever the search."""
    totals, live = {ROOT: 0.0}, {}
    for i, node in enumerate(one.nodes):
        assert node.parent < i and node.step == (0 if node.parent == ROOT else one.nodes[node.parent].step + 1)
        totals[i] = totals[node.parent] + node.log_prob
        assert node.total == pytest.approx(totals[i], abs=1e-4)
        assert node.ended == (node.score is not None) and node.parent not in live.get("ended", ())
        assert node.out is None or node.out >= node.step
        if node.ended:
            assert node.out is None
            assert node.score == pytest.approx(float(options.score(node.total, node.step + 1)), abs=1e-5)
            live.setdefault("ended", set()).add(i)
        else:
            live.setdefault(node.step, []).append(i)
    children = {i: [j for j, n in enumerate(one.nodes) if n.parent == i] for i in range(len(one.nodes))}
    last = max(node.step for node in one.nodes)
    for i, node in enumerate(one.nodes):
        kept = [j for j in children[i] if one.nodes[j].ended or one.nodes[j].out != one.nodes[j].step]
        if node.out is not None and node.out > node.step:
            assert not kept and node.out == node.step + 1
        elif node.out == node.step:
            assert not children[i]  # only considered
        elif not node.ended:
            assert kept or node.step == last
    for step in range(last + 1):
        kept = [i for i in live.get(step, ()) if one.nodes[i].out != step]
        out = [i for i in live.get(step, ()) if one.nodes[i].out == step]
        assert len(kept) <= options.beam_size
        if kept and out and not samples:  # those that fell out were no better
            assert min(one.nodes[i].total for i in kept) >= max(one.nodes[i].total for i in out)
    for node, likely in one.alternatives.items():
        log_probs = [each.log_prob for each in likely]
        assert log_probs == sorted(log_probs, reverse=True) and math.fsum(map(math.exp, log_probs)) < 1 + 1e-4
        for j in children[node] if node != ROOT else ():
            same = [each.log_prob for each in likely if each.piece == one.nodes[j].piece]
            if same and one.nodes[j].log_prob < 0:
                assert one.nodes[j].log_prob == pytest.approx(same[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_recorded_search_is_the_compiled_one(name):
    """Of random models, with rows that end early and at their limit, and an empty row; of the first options, also with
    several stages and a batch that shrinks."""
    models = (build(CONFIG.with_vocabulary(VOCABULARY)),)
    limits = MANY if name == "beam 3" else LIMITS
    source, plan = sources(len(limits), 6, seed=1), strategy(**OPTIONS[name])
    given = {"number_B": np.arange(len(limits), dtype=np.int32)}
    for seed in (1, 2):
        params = (random_params(models[0], seed),)
        compiled = dict(decode(models, params, source, limits, plan, given))
        records = record(models, params, source, limits, plan, given, top=5)
        assert records.keys() == compiled.keys() == set(np.flatnonzero(limits).tolist())
        for row, one in records.items():
            for ours, theirs in zip(one.hypotheses, compiled[row], strict=True):
                theirs = theirs[:, : ours.shape[1]] if ours.ndim == 2 else theirs
                np.testing.assert_allclose(ours[..., : theirs.shape[-1]], theirs, rtol=1e-5)
            consistent(one, plan.options, samples=plan.sampler is not None)
            found = zip(one.paths, one.hypotheses.tokens_BML, one.hypotheses.lengths_BM, strict=False)
            for path, tokens, length in found:
                assert [one.nodes[node].piece for node in path] == tokens[:length].tolist()
            for path, score in zip(one.paths, one.hypotheses.scores_BM, strict=False):
                assert one.nodes[path[-1]].score == pytest.approx(score, rel=1e-6)
            assert len(one.paths) == (one.hypotheses.lengths_BM > 0).sum()
            assert all(len(likely) == 5 for likely in one.alternatives.values())


@pytest.mark.slow
def test_two_models():
    model = build(CONFIG.with_vocabulary(VOCABULARY))
    params = (random_params(model, 1), random_params(model, 5))
    source, plan = sources(len(LIMITS), 6, seed=1), strategy()
    compiled = dict(decode((model, model), params, source, LIMITS, plan))
    for row, one in record((model, model), params, source, LIMITS, plan).items():
        np.testing.assert_allclose(one.hypotheses.scores_BM, compiled[row].scores_BM, rtol=1e-5)
        consistent(one, plan.options)


def test_a_search_ends_when_it_is_told_to():
    model = build(CONFIG.with_vocabulary(VOCABULARY))
    stop = threading.Event()
    stop.set()
    arguments = ((model,), (random_params(model, 1),), sources(2, 6, seed=1), np.array([9, 9], np.int32), strategy())
    records = record(*arguments, (), stop)
    assert [(one.nodes, one.hypotheses) for one in records.values()] == [([], None)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"beam_size": 4, "n_best": 3, "length_penalty": 1.0}, marks=pytest.mark.slow),
        pytest.param({"beam_size": 1}, marks=pytest.mark.slow),
        pytest.param({"no_repeat_ngram": 2, "min_length": 6, "banned": ("Hund",)}, marks=pytest.mark.slow),
        {"sample": True, "n_best": 3, "temperature": 0.7, "seed": 5},
    ],
    ids=str,
)
def test_a_trained_translator(trained, options):
    translator = Translator.load(str(trained))
    translator = translator.with_config(dataclasses.replace(translator.config, **options))
    assert isinstance(translator.config, DecodeConfig)
    for prefixes in (None, ["rot Ka", "", "", "alt Haus "]):
        found = translator.recorded(SENTENCES, prefixes=prefixes)
        for (ours, one), theirs in zip(found, translator.translate_n_best(SENTENCES, prefixes=prefixes), strict=True):
            assert [(each.text, each.tokens) for each in ours] == [(each.text, each.tokens) for each in theirs]
            np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], rtol=1e-5)
            assert len(one.paths) >= len(ours)
    assert found[0][0][0].text.startswith("rot Ka") and found[2][0] == []
    with pytest.raises(ValueError, match=r"^\['x'\] can't end a search; give a threading.Event$"):
        translator.recorded(SENTENCES, stop=["x"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"sample": True, "n_best": 3}, {"beam_size": 3, "n_best": 2}], ids=str)
def test_a_generator(options):
    """Also beyond the context, and with a string that ends a text."""
    generator = generators.generator(max_extra_length=30, context=20, **options)
    for stop in ((), ("ab", "c")):
        ours = generator.recorded(generators.PROMPTS, stop=stop)
        theirs = generator.generate_n_best(generators.PROMPTS, stop=stop)
        assert len(ours) == len(theirs) and generator.recorded([], stop=stop) == []
        for i, ((texts, one), expected) in enumerate(zip(ours, theirs, strict=True)):
            if i and options.get("sample"):  # recorded prompts are all the first line
                continue
            assert [each.text for each in texts] == [each.text for each in expected]
            np.testing.assert_allclose(
                [each.log_prob for each in texts], [each.log_prob for each in expected], rtol=1e-4
            )
            consistent(one, generators_options(generator), samples=bool(options.get("sample")))


def generators_options(generator):
    from transformer.inference.strategy import generation

    return generation(generator.config, generator.vocabulary).options
