"""The decoder reads the encoder's state of the next word: in one pass, step by step, and when it may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from reference import Reference
from tiny import SOURCE, TARGET, TINY, lengths, tiny

from transformer.config import UserError
from transformer.model import hard_attention

PARSER = dataclasses.replace(TINY, head="token", labels=3, hard_attention=True)
CONFIGS = {
    "post-norm": PARSER,
    "pre-norm": dataclasses.replace(PARSER, pre_norm=True),
    "like BERT": dataclasses.replace(PARSER, input_norm=True, positions="learned", embedding_scale=False),
}
BEGINS = np.array([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]) == 1
PASSED = np.array([[0, 0, 1, 2, 3], [0, 1, 1, 1, 1], [0, 1, 1, 2, 7]])
# The first piece of the next word; behind the last word the end of the sentence, wherever the padding begins.
PLACES = [[1, 1, 3, 4, 5], [0, 2], [0, 1, 1, 4]]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_reads_the_next_word(name):
    model, params = tiny(CONFIGS[name])
    logits_BTV = jit(model.apply)(params, SOURCE, TARGET, words=(BEGINS, PASSED))
    for row, (S, T) in enumerate(zip(lengths(SOURCE), lengths(TARGET), strict=True)):
        expected, _ = Reference(CONFIGS[name], params).logits(SOURCE[row, :S], TARGET[row, :T], np.array(PLACES[row]))
        np.testing.assert_allclose(logits_BTV[row, :T], expected, rtol=1e-4, atol=1e-4)


def test_a_mask_with_a_hole_moves_no_word():
    """What may not be attended to in the middle of a sentence counts as a place, but begins no word."""
    mask = np.array([[1, 0, 1, 1, 1, 0]]) == 1
    begins = np.array([[0, 1, 1, 1, 0, 1]]) == 1
    x_BSD = np.arange(6.0, dtype=np.float32).reshape(1, 6, 1)
    found = hard_attention.words(PARSER, x_BSD, begins, mask, None)
    np.testing.assert_array_equal(found[0, :, 0], [2, 3, 4, 4, 4, 4])


def test_one_row_may_stand_for_all():
    model, params = tiny(PARSER)
    one, all_rows = (BEGINS[:1], PASSED[:1]), (np.tile(BEGINS[:1], (3, 1)), np.tile(PASSED[:1], (3, 1)))
    source, target = np.tile(SOURCE[:1], (3, 1)), np.tile(TARGET[:1], (3, 1))
    found, expected = (jit(model.apply)(params, source, target, words=words) for words in (one, all_rows))
    np.testing.assert_array_equal(found, expected)


def test_the_memory_is_of_the_same_kind():
    (hard, params), (plain, others) = tiny(PARSER), tiny(dataclasses.replace(PARSER, hard_attention=False))
    memories = [
        jax.eval_shape(lambda: hard.bind(params).encode(SOURCE, begins_BS=BEGINS)),
        jax.eval_shape(lambda: plain.bind(others).encode(SOURCE)),
    ]
    for bound, memory, kind in (
        (hard.bind(params), memories[1], "without"),
        (plain.bind(others), memories[0], "with"),
    ):
        for passed in (None, PASSED):
            with pytest.raises(UserError, match=f"^memory is of a model {kind} hard_attention: give what `encode` of "):
                jax.eval_shape(lambda m, b=bound, p=passed: b.hidden(TARGET, m, passed_BT=p), memory)


def test_bfloat16_reads_the_same_word():
    model, params = tiny(dataclasses.replace(PARSER, dtype="bfloat16"))
    found = jit(model.apply)(params, SOURCE, TARGET, words=(BEGINS, PASSED))
    expected = jit(tiny(PARSER)[0].apply)(params, SOURCE, TARGET, words=(BEGINS, PASSED))
    for row, T in enumerate(lengths(TARGET)):
        np.testing.assert_allclose(found[row, :T], expected[row, :T], atol=0.15)


def test_step_by_step_for_beams_of_their_own():
    """Two beams of each sentence have passed different numbers of words."""
    model, params = tiny(PARSER)
    bound, other = model.bind(params), np.array([[0, 1, 2, 3, 3], [0, 0, 0, 0, 1], [0, 0, 1, 1, 2]])
    # Without padding, which has a state of its own here.
    target = np.where(TARGET == 0, 9, TARGET)
    expected = [jit(model.apply)(params, SOURCE, target, words=(BEGINS, read)) for read in (PASSED, other)]
    memory = jit(bound.encode)(SOURCE, begins_BS=BEGINS)
    cache = bound.init_cache(len(SOURCE), target.shape[1], beams=2)

    @jit
    def step(tokens, cache, at, read):
        return bound.decode(tokens, memory, cache=cache, at_B=at, passed_BT=read)[:2]

    for t in range(target.shape[1]):
        tokens = np.repeat(target[:, t], 2)[:, None]
        read = np.stack([PASSED[:, t], other[:, t]], axis=1).reshape(-1, 1)
        logits, cache = step(tokens, cache, jnp.int32(t), read)
        for beam in (0, 1):
            np.testing.assert_allclose(logits[beam::2, 0], expected[beam][:, t], rtol=1e-4, atol=1e-4)


def test_a_pass_with_all_weights_is_the_same_pass():
    model, params = tiny(PARSER)
    found, weights = jit(model.bind(params).attention)(SOURCE, TARGET, words=(BEGINS, PASSED))
    expected = jit(model.apply)(params, SOURCE, TARGET, words=(BEGINS, PASSED))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert weights["cross"].shape == (3, 2, 4, 5, 6)


NUMBERS = np.ones_like(SOURCE)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PARSER, {}, "begins_BS is missing: model.hard_attention needs where each word begins"),
        (PARSER, {"words": (BEGINS[:, :2], PASSED)}, "begins_BS"),
        (PARSER, {"words": (BEGINS.astype(int), PASSED)}, "begins_BS"),
        (
            PARSER,
            {"words": (BEGINS, None)},
            "passed_BT is missing: model.hard_attention needs how many words",
        ),
        (PARSER, {"words": (BEGINS, PASSED[:, :2])}, "passed_BT"),
        (PARSER, {"words": (BEGINS, PASSED / 2)}, "passed_BT"),
        (PARSER, {"words": (BEGINS, PASSED - 1)}, "passed_BT holds -1: numbers of words are at least 0"),
        (PARSER, {"words": BEGINS}, r"words must be two arrays: \(begins_BS, passed_BT\)"),
        (
            PARSER,
            {"words": (BEGINS, PASSED), "segments": (NUMBERS, NUMBERS[:, :5]), "positions": (NUMBERS, NUMBERS[:, :5])},
            "segments are given: with model.hard_attention, each row holds one sentence",
        ),
        (TINY, {"words": (BEGINS, None)}, "begins_BS is given, but model.hard_attention is False: leave it out"),
        (TINY, {"words": (None, PASSED)}, "passed_BT is given, but model.hard_attention is False: leave it out"),
    ],
)
def test_wrong_arguments_are_named(config, options, message):
    model, params = tiny(config)
    with pytest.raises(UserError, match=f"^{message}"):
        jax.eval_shape(lambda: model.apply(params, SOURCE, TARGET, **options))
