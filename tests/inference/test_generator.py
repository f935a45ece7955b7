"""Generation equals plain loops over whole passes, whatever the batch; samples, stop strings, streams, scores."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from generators import CONFIG, PROMPTS, VARIANTS, VOCABULARY, following, generator, greedy, log_prob_of, logits_of, tiny
from plain_beam_search import plain_beam_search

import transformer
from transformer.config import DecodeConfig, UserError
from transformer.data.vocabularies import Bytes, Characters
from transformer.inference.generator import Generator
from transformer.model import build

SAMPLES = {"sample": True, "n_best": 3, "max_extra_length": 20}


def found_by(ours, prompts=PROMPTS, **more):
    """The texts of each prompt, and the prompts as pieces."""
    pieces = ours.encode(prompts)
    found = dict(ours.search(pieces, **more))
    return [found[i] for i in range(len(prompts))], pieces


# ---- Equal to plain loops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_search_equals_whole_passes(name):
    """Prompts of several lengths in one batch; outputs of more than one stage, so that the cache is collected."""
    ours = generator(dataclasses.replace(CONFIG, **VARIANTS[name]), max_extra_length=20)
    results, prompts = found_by(ours)
    for (one,), prompt in zip(results, prompts, strict=True):
        pieces, log_prob = greedy(ours, prompt)
        assert one.tokens == pieces and one.text == VOCABULARY.decode(pieces)
        assert one.log_prob == pytest.approx(log_prob, rel=1e-4)
    assert max(len(one.tokens) for (one,) in results) == 20


def test_beams_equal_a_plain_search():
    """With documents, the end among the pieces, and constraints. Hypotheses at the limit count without the end."""
    ours = generator(documents=True, beam_size=3, n_best=3, max_extra_length=6, no_repeat_ngram=2, banned=("ab",))
    results, prompts = found_by(ours)
    ends = 0
    for found, prompt in zip(results, prompts, strict=True):
        assert prompt[0] == VOCABULARY.begin
        banned = [tuple(VOCABULARY.encode("ab").tolist())]
        wanted = plain_beam_search(
            following(ours, prompt), 6, 3, VOCABULARY.end, 0.6, "paper", cut=True, no_repeat_ngram=2, banned=banned
        )
        for one, (_, pieces) in zip(found, wanted, strict=True):
            ended = pieces[-1] == VOCABULARY.end
            ends += ended
            assert one.tokens == list(pieces[: len(pieces) - ended])
            assert one.log_prob == pytest.approx(log_prob_of(ours, prompt, one.tokens, ended), rel=1e-4)
    assert 0 < ends < 15


def test_an_ensemble_and_a_penalty():
    """Averaged probabilities of two models, of logits with a penalty on the pieces of prompt and output."""
    ours = generator(seeds=(0, 1), repetition_penalty=1.7)
    results, prompts = found_by(ours)
    for (one,), prompt in zip(results, prompts, strict=True):
        assert one.tokens == greedy(ours, prompt)[0]
    plain = found_by(generator())[0]
    assert sum(one.tokens != other.tokens for (one,), (other,) in zip(results, plain, strict=True)) > 2


def test_beyond_the_context_the_text_goes_on(caplog):
    """With the last half of its pieces, whatever the neighbours; a prompt that is too long keeps its last pieces."""
    caplog.set_level(logging.WARNING, logger="transformer")
    ours = generator(context=8, max_extra_length=20)
    results, prompts = found_by(ours)
    assert [len(prompt) for prompt in prompts] == [3, 1, 8, 3, 1] and VOCABULARY.decode(prompts[2]) == "cba gfed"
    for (one,), prompt in zip(results, prompts, strict=True):
        assert one.tokens == greedy(ours, prompt)[0] and len(one.tokens) == 20
    assert found_by(ours)[0] == results
    assert [message for message in caplog.messages if "line 3" not in message] == [
        "the model sees at most 8 pieces at once (data.context, model.max_positions): where prompt and output together "
        "are longer, it goes on with the last 4 of them"
    ]
    told = "line 3: the prompt has 12 pieces; only the last 8 are used: the model's context (1 of 5 lines)"
    assert caplog.messages.count(told) == 2


# ---- Samples --------------------------------------------------------------------------------------------------------


def test_the_batch_changes_nothing():
    """Samples with stages, a context that is cut, and sentences that leave: alone or with neighbours."""
    together, prompts = found_by(generator(context=16, **SAMPLES))
    single = generator(context=16, batch_sentences=1, **SAMPLES)
    assert len({one.text for found in together for one in found}) > 12
    for i in (0, 2, 4):
        ((_, found),) = single.search([prompts[i]], first=i)
        assert [one.tokens for one in found] == [one.tokens for one in together[i]]
        np.testing.assert_allclose([one.log_prob for one in found], [one.log_prob for one in together[i]], rtol=1e-4)
    other = found_by(generator(context=16, seed=1, **SAMPLES))[0]
    assert sum(one[0].text != two[0].text for one, two in zip(together, other, strict=True)) > 2


def test_samples_have_their_log_probabilities():
    ours = generator(temperature=1.5, **SAMPLES)
    results, prompts = found_by(ours)
    for found, prompt in zip(results, prompts, strict=True):
        assert [one.log_prob for one in found] == sorted((one.log_prob for one in found), reverse=True)
        for one in found:
            wanted = log_prob_of(ours, prompt, one.tokens, len(one.tokens) < 20)
            assert one.log_prob == pytest.approx(wanted, rel=1e-4)


def test_samples_are_as_frequent_as_probable():
    """A chi-square test of 4,096 first pieces, with a temperature and min_p: 64 samples in each of 64 lines."""
    draws, temperature, min_p, options = 64 * 64, 2.0, 0.2, {"sample": True, "max_extra_length": 1}
    ours = generator(n_best=64, temperature=temperature, min_p=min_p, batch_sentences=64, **options)
    found, (prompt, *_) = found_by(ours, ["abc"] * 64)
    found = [one for line in found for one in line]
    probs = np.exp(following(ours, prompt)(()) / temperature)
    probs[probs < min_p * probs.max()] = 0
    expected = draws * probs / probs.sum()
    ends = [VOCABULARY.end]
    counts = np.bincount([(one.tokens or ends)[0] for one in found], minlength=len(probs))
    possible = expected > 0
    assert counts.sum() == draws and counts[~possible].sum() == 0 and 3 < possible.sum() < len(probs) - 3
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


# ---- Stop strings and streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [None, 8])
def test_texts_end_before_a_stop_string(context):
    """The pieces up to the stop string are those of a run without it; they alone count in the log-probability."""
    ours = generator(context=context, sample=True, max_extra_length=20)
    free, prompts = found_by(ours, PROMPTS * 2)
    stop = [max((one.text for (one,) in free), key=len)[3:5], "gg"]
    stopped, _ = found_by(ours, PROMPTS * 2, stop=stop)
    cut = 0
    for (one,), (whole,), prompt in zip(stopped, free, prompts, strict=True):
        assert one.text == min((whole.text.split(each)[0] for each in stop), key=len)
        if one.text == whole.text:
            assert one.tokens == whole.tokens
            continue
        cut += 1
        assert one.tokens == whole.tokens[: len(one.tokens)]
        assert any(VOCABULARY.decode(one.tokens).endswith(each) for each in stop)
        assert one.log_prob == pytest.approx(log_prob_of(ours, prompt, one.tokens, False), rel=1e-4)
    assert cut > 1


def test_a_stop_string_ends_a_beam_search():
    """Also before it has decode.min_length pieces. All hypotheses end with it or at the limit."""
    ours = generator(beam_size=3, n_best=3, max_extra_length=16, min_length=16)
    (free,) = ours.generate(["abc"])
    assert len(free) == 16
    (found,), (prompt,) = found_by(ours, ["abc"], stop=[free[2:4]])
    texts = [VOCABULARY.decode(one.tokens) for one in found]
    assert any(text.endswith(free[2:4]) for text in texts)
    for one, text in zip(found, texts, strict=True):
        assert text.endswith(free[2:4]) or (len(text) == 16 and free[2:4] not in text)
        assert one.text == text.removesuffix(free[2:4])
        assert one.log_prob == pytest.approx(log_prob_of(ours, prompt, one.tokens, False), rel=1e-4)


@pytest.mark.parametrize("stop", [(), ("a", "b")])
def test_a_stream_gives_the_same_text(stop):
    """Text of bytes: characters come whole, and nothing of a stop string comes. The tally counts the prompt."""
    vocabulary = Bytes()
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.size)
    ours = generator(config, context=16, vocabulary=vocabulary, sample=True, max_extra_length=30, top_k=90)
    for line in (1, 2):
        parts = list(ours.stream("äb", stop=stop, first_line=line))
        assert "".join(parts) == ours.generate(["äb"], stop=stop, first_line=line)[0]
        assert len(parts) > 1 or stop
        assert not any(each in "".join(parts) for each in stop)
    assert ours.tally.all == 4


def test_a_stream_needs_one_sample():
    with pytest.raises(UserError, match=r"^beam search has no stream of pieces: give "):
        next(generator(beam_size=2).stream("a"))
    with pytest.raises(UserError, match=r"^decode\.n_best = 3 has no stream of pieces: give "):
        next(generator(**SAMPLES).stream("a"))


# ---- Scores and arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [False, True])
def test_scores_are_those_of_a_whole_pass(documents):
    ours = generator(documents=documents)
    for text, scored in zip(PROMPTS, ours.score(PROMPTS), strict=True):
        pieces = VOCABULARY.encode(text).tolist()
        read = [VOCABULARY.begin, *pieces] if documents else pieces
        assert scored.pieces == tuple(VOCABULARY.pieces(pieces))
        log_probs = list(scored.log_probs)
        assert len(log_probs) == len(pieces)
        if not documents and pieces:
            assert log_probs.pop(0) is None
        if log_probs:
            logits = logits_of(*tiny(), read)[:-1]
            wanted = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[range(len(read) - 1), read[1:]]
            np.testing.assert_allclose(log_probs, wanted, rtol=1e-4, atol=1e-5)
            assert scored.log_prob == pytest.approx(wanted.sum(), rel=1e-4)
    with pytest.raises(UserError, match=r"^line 7: the text has 50 pieces, and the model sees at most 48 at once; "):
        ours.score(["a" * 50], first_line=7)


def test_unknown_characters_are_told(caplog):
    caplog.set_level(logging.WARNING, logger="transformer")
    assert [len(pieces) for pieces in generator().encode(["a", "aß?"], first_line=4)] == [1, 3]
    told = "line 5: the vocabulary lacks '?' 'ß', which the model reads as unknown (1 of 2 lines)"
    assert caplog.messages == [told]
    generator().score(["a", "aß?"], first_line=4)
    assert caplog.messages == [told] * 2


def test_nothing_to_generate():
    assert generator(max_extra_length=0).generate(PROMPTS) == [""] * 5
    assert list(generator(max_extra_length=0).stream("a")) == []
    assert generator().generate([]) == []


def test_samples_are_the_same_inside_jit():
    """The generator is no function of JAX's; it must not mistake its own arrays for traced ones."""
    ours, found = generator(**SAMPLES, streams=2), []  # in threads of its own, as on several cores
    jax.jit(lambda x: (found.extend(ours.generate(PROMPTS)), x)[1])(1.0)
    assert found == ours.generate(PROMPTS)


class Pieces:
    """The names that a tokenizer of translation shares with a vocabulary."""

    spelling = [b""] * 13


ENCODER = dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=0)
BOTH = dataclasses.replace(CONFIG, encoder_layers=1)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda ours: ours.generate("abc"), "prompts is a str: give a list of strings"),
        (lambda ours: ours.generate(["a"], stop=[""]), "a stop string is empty; leave it out"),
        (lambda ours: ours.generate(["a"], stop=["x" * 1001]), "the stop strings have more than 1000 bytes together"),
        (lambda ours: list(ours.search([[4], []])), "prompt 1 is empty; give the begin of a document, 1"),
        (lambda ours: list(ours.search([[99]])), "prompt 0: ids must be integers, 0 or more and below"),
        (lambda ours: list(ours.search([[4] * 49])), "prompt 0 has 49 pieces, and the context 48; cut it"),
        (
            lambda ours: Generator(ours.model, ours.params, Bytes()),
            "the model has a vocabulary of 13 pieces, and the g",
        ),
        (lambda ours: Generator(ours.model, ours.params, "x.json"), "vocabulary = 'x.json': give one of transformer."),
        (lambda ours: Generator(ours.model, ours.params, Pieces()), "vocabulary = <"),
        (lambda ours: Generator.of(["runs/x"]), "checkpoints = ['runs/x']: give a list of what Checkpoints(workdir)"),
        (lambda ours: Generator.of([]), "no checkpoints: give one at least"),
        (lambda ours: ours.generate(["a"], stop=["a\ud800"]), "stop holds half a surrogate pair, which is not text"),
        (lambda ours: generator(banned=("\ud800",)).generate(["a"]), "decode.banned holds half a surrogate pair"),
        (lambda ours: VOCABULARY.encode(None), "the text is a NoneType: give strings"),
        (lambda ours: Characters(["ab"]), "the vocabulary has 'ab', which is not a character; leave it out"),
        (lambda ours: Characters("a\ud800"), "the vocabulary has '\\ud800', which is not a character; leave it out"),
        (lambda ours: Generator(ours.model, ours.params, VOCABULARY, context=1), "context = 1: must be at least 2"),
        (
            lambda ours: Generator(ours.model, ours.params, VOCABULARY, documents="none"),
            "documents = 'none': must be True or False",
        ),
        (lambda ours: Generator(build(ENCODER), ours.params, VOCABULARY), "model = <Model(ModelConfig("),
        (
            lambda ours: Generator(ours.model, ours.params, VOCABULARY, others=[(build(BOTH), ours.params)]),
            "model = <Model(ModelConfig(",
        ),
    ],
)
def test_wrong_arguments_are_named(call, told):
    with pytest.raises(UserError) as error:
        call(generator())
    assert str(error.value).startswith(told)


DEVICES = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
sys.path[:0] = sys.argv[1:]
from generators import PROMPTS, VOCABULARY, generator
from transformer.inference.batches import on_all_devices
from transformer.inference.generator import Generator
results = []
for spread in (True, False):
    ours = generator(context=12, sample=True, n_best=2, max_extra_length=20, repetition_penalty=1.2)
    params = on_all_devices(ours.params) if spread else ours.params
    ours = Generator(ours.model, params, VOCABULARY, ours.config, context=12)
    results.append([[one.tokens for one in found] for found in ours.generate_n_best(PROMPTS * 2, stop=["gg"])])
    placed, *_ = ours.batcher.put(__import__("numpy").zeros((8, 8), int))
    results.append([shard.data.shape[0] for shard in placed.addressable_shards] if spread else None)
print(json.dumps(results))
"""


@pytest.mark.slow
def test_several_devices_change_nothing(environment):
    """Also where contexts begin anew and where batches shrink."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(here), str(here.parent)],
        capture_output=True, text=True, env=environment | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    spread, rows, alone, _ = json.loads(done.stdout)
    assert rows == [2] * 4 and len(spread) == 10
    assert sum(one == other for one, other in zip(spread, alone, strict=True)) >= 9


def test_large_whole_numbers_are_options_like_other_numbers() -> None:
    """JAX would take them as integers of 32 bits."""
    config = DecodeConfig(sample=True, temperature=2**31, repetition_penalty=2**31, max_extra_length=3)
    found = transformer.Generator(*tiny(), VOCABULARY, config).generate(["ab"])
    assert len(found) == 1
