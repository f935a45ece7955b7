"""Forced scoring of given pairs. A search ranks its n best by the same scores."""

import dataclasses

import numpy as np
import pytest
from quick import jit
from whole_passes import BOS, CONFIG, EOS, PAD, following, sources, translator

from transformer.config import AttentionConfig, UserError

SOURCES = [*sources(5, seed=2), [], [7], []]
TARGETS = [[4, 4, 9], [], [13, 3], [5] * 12, sources(1, seed=4)[0], [6, 7], [], []]


def plain_score(models, source, target):
    log_probs, pieces = following(models, source), [*target, EOS]
    return [log_probs(tuple(pieces[:t]))[piece] for t, piece in enumerate(pieces)]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize(("form", "alpha"), [("paper", 0.6), ("fairseq", 1.0), ("none", 0.6)])
def test_scores_by_hand(seeds, form, alpha):
    """Also empty sources and targets; one model and an ensemble; in any order and batch."""
    ours = translator(seeds=seeds, length_normalization=form, length_penalty=alpha)
    scored = ours.score_pieces(SOURCES, TARGETS)
    for own, source, target in zip(scored, SOURCES, TARGETS, strict=True):
        wanted = plain_score(list(zip(ours.models, ours.all_params, strict=True)), source, target)
        np.testing.assert_allclose(own.log_probs, wanted, rtol=1e-5, atol=1e-6)
        n = len(target) + 1
        over = {"paper": ((5 + n) / 6) ** alpha, "fairseq": n**alpha, "none": 1}[form]
        assert own.score == pytest.approx(sum(wanted) / over, rel=1e-5)
        assert own.pieces == tuple(f"<{piece}>" for piece in [*target, EOS])
        assert own.source_pieces == tuple(f"<{piece}>" for piece in [*source, EOS])
        assert len(own.alignment) == n and set(own.alignment) <= set(range(len(own.source_pieces)))
    assert ours.score_pieces([], []) == []


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_n_best_are_sorted_unique_and_scored_as_given_translations_are(seeds):
    ours, texts = translator(seeds=seeds, beam_size=5, n_best=5), sources(8, seed=5)
    found = dict(ours.search(texts))
    pairs = [(texts[i], pieces) for i in range(8) for pieces in found[i][0]]
    again = iter(ours.score_pieces(*zip(*pairs, strict=True)))
    for i in range(8):
        tokens, scores = found[i]
        assert len(tokens) == len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(pieces) for pieces in tokens}) == 5
        np.testing.assert_allclose([next(again).score for _ in tokens], scores, rtol=1e-5)


@pytest.mark.parametrize(("layers", "aligns"), [(1, 0), (2, 0), (3, 1)])
def test_the_alignment_is_that_of_the_last_layer_but_one(layers, aligns):
    """Averaged over its heads. With several models, the alignment is that of the first."""
    config = dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=layers, cross_attention=AttentionConfig(1))
    ours = translator(config, seeds=(0, 1))
    scored = ours.score_pieces(SOURCES, TARGETS)

    @jit
    def weights_of(source, target):
        memory = ours.model.bind(ours.params).encode(source[None])
        return ours.model.bind(ours.params).decode(target[None], memory, want_weights=True)[2]

    wanted, other = [], []
    for source, target in zip(SOURCES, TARGETS, strict=True):
        padded = np.array([*source, EOS] + [PAD] * 8)[:8], np.array([BOS, *target] + [PAD] * 13)[:13]
        mean_of_each = [np.asarray(own)[0, :, : len(target) + 1].mean(axis=0) for own in weights_of(*padded)]
        assert len(mean_of_each) == layers
        wanted.append(tuple(mean_of_each[aligns].argmax(axis=-1).tolist()))
        other.append(tuple(mean_of_each[-1].argmax(axis=-1).tolist()))
    assert [own.alignment for own in scored] == wanted
    assert layers == 1 or wanted != other
    assert len({place for own in wanted for place in own}) > 3


def test_numbers_of_sentences_must_agree():
    with pytest.raises(ValueError, match="2 sentences and 1 translations"):
        translator().score(["4", "5"], ["4"])


def test_lines_are_scored_as_their_pieces_are():
    """A source that is too long is cut, as in a translation; a blank one is empty."""
    ours = translator(max_source_length=3)
    scored = ours.score(["4 5 6 7", " ", "8"], ["9", "3 4", ""])
    assert scored == ours.score_pieces([[4, 5, 6], [], [8]], [[9], [3, 4], []])


def test_beyond_learned_positions_is_refused_and_the_line_named():
    """CONFIG has 64 positions; one is for eos."""
    ours, long, most = translator(max_source_length=57), " ".join(["5"] * 64), " ".join(["5"] * 63)
    with pytest.raises(UserError, match=r"line 8: the translation has 64 pieces; .* model.max_positions = 64"):
        ours.score(["4", "4"], ["4", long], first_line=7)
    with pytest.raises(UserError, match="line 2: the prefix has 64 pieces"):
        ours.translate(["4", "4"], prefixes=["", long])
    (scored,) = ours.score(["4"], [most])
    assert len(scored.log_probs) == 64 and np.isfinite(scored.log_probs).all()
    # The positions that a search may need are checked at once, also for the smallest of several models.
    with pytest.raises(UserError, match=r"max_source_length = 58 .* allow for 65 positions, .* only 64 learned"):
        translator(max_source_length=58)
    # Sinusoidal positions are not limited.
    endless = translator(dataclasses.replace(CONFIG, positions="sinusoidal"), max_source_length=70)
    assert len(endless.score([long], [long])[0].log_probs) == 65


def test_a_blank_prefix_is_none():
    ours = translator()
    assert ours.translate(["4 5"], prefixes=["  "]) == ours.translate(["4 5"])
