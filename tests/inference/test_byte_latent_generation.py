"""Generation with a Byte Latent Transformer, which makes patches as it goes, equals whole passes without a cache."""

import dataclasses

import pytest
from generators import PROMPTS, VOCABULARY, following, generator, greedy, log_prob_of
from plain_beam_search import plain_beam_search

from transformer.config import AttentionConfig, ByteLatentModel, ModelConfig, NgramConfig, PatchConfig

SIZES = {"d_model": 16, "d_ff": 24, "heads": 4, "pre_norm": True, "positions": "rotary"}
PART = ModelConfig(encoder_layers=0, decoder_layers=1, **SIZES)
CONFIG = ByteLatentModel(
    **{**SIZES, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY.size},
    encoder_attention=AttentionConfig(window=4),
    latent=dataclasses.replace(PART, d_model=32),
    entropy=PART,
    patches=PatchConfig(bytes=2.0, room=1.5, threshold=0.8),
    ngrams=NgramConfig(shortest=2, longest=3, rows=30),
)


def found_by(ours):
    pieces = ours.encode(PROMPTS)
    found = dict(ours.search(pieces))
    return [found[i] for i in range(len(PROMPTS))], pieces


@pytest.mark.parametrize("context", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_greedy_search_equals_whole_passes(context):
    """With several stages; beyond the context, texts go on with their last half, cut into patches anew."""
    ours = generator(CONFIG, context=context, max_extra_length=20)
    results, prompts = found_by(ours)
    for (one,), prompt in zip(results, prompts, strict=True):
        pieces, log_prob = greedy(ours, prompt)
        assert one.tokens == pieces
        assert one.log_prob == pytest.approx(log_prob, rel=1e-4)
    assert max(len(one.tokens) for (one,) in results) == 20


def test_learned_positions_of_the_entropies_bound_the_context():
    entropy = dataclasses.replace(PART, positions="learned", max_positions=8)
    for context in (None, 20):
        assert generator(dataclasses.replace(CONFIG, entropy=entropy), context=context).context == 8


@pytest.mark.slow
def test_samples_have_their_log_probabilities():
    ours = generator(CONFIG, sample=True, n_best=2, top_k=9, temperature=1.2, max_extra_length=17)
    results, prompts = found_by(ours)
    assert len({tuple(one.tokens) for found in results for one in found}) > 8
    for found, prompt in zip(results, prompts, strict=True):
        for one in found:
            wanted = log_prob_of(ours, prompt, one.tokens, len(one.tokens) < 17)
            assert one.log_prob == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_beams_equal_a_plain_search():
    """Hypotheses of one prompt share slots of the cache, and end their patches at other bytes."""
    ours = generator(CONFIG, beam_size=3, n_best=3, max_extra_length=6, no_repeat_ngram=2)
    results, prompts = found_by(ours)
    for found, prompt in zip(results, prompts, strict=True):
        wishes = {"cut": True, "no_repeat_ngram": 2}
        wanted = plain_beam_search(following(ours, prompt), 6, 3, VOCABULARY.end, 0.6, "paper", **wishes)
        for one, (_, pieces) in zip(found, wanted, strict=True):
            ended = pieces[-1] == VOCABULARY.end
            assert one.tokens == list(pieces[: len(pieces) - ended])
            assert one.log_prob == pytest.approx(log_prob_of(ours, prompt, one.tokens, ended), rel=1e-4)


@pytest.mark.slow
def test_scores_are_those_of_a_whole_pass():
    ours = generator(CONFIG)
    for text, scored in zip(PROMPTS, ours.score(PROMPTS), strict=True):
        pieces = VOCABULARY.encode(text).tolist()
        if len(pieces) > 1:
            log_probs = [following(ours, pieces[:1])(tuple(pieces[1:i]))[pieces[i]] for i in range(1, len(pieces))]
            assert list(scored.log_probs[1:]) == pytest.approx(log_probs, rel=1e-4)
