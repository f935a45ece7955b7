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

PARSER = dataclasses.replace(TINY, head="token", labels=3, hard_attention=True)
CONFIGS = {
    "post-norm": PARSER,
    "pre-norm": dataclasses.replace(PARSER, pre_norm=True),
    "like BERT": dataclasses.replace(PARSER, input_norm=True, positions="learned", embedding_scale=False),
}
BEGINS = np.array([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]) == 1
READ = np.array([[0, 0, 1, 2, 3], [0, 1, 1, 1, 1], [0, 1, 1, 2, 7]])
# The first piece of the next word; behind the last word the end of the sentence, wherever the padding begins.
PLACES = [[1, 1, 3, 4, 5], [0, 2], [0, 1, 1, 4]]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_reads_the_next_word(name):
    model, params = tiny(CONFIGS[name])
    logits_BTV = jit(model.apply)(params, SOURCE, TARGET, words=(BEGINS, READ))
    for row, (S, T) in enumerate(zip(lengths(SOURCE), lengths(TARGET), strict=True)):
        expected, _ = Reference(CONFIGS[name], params).logits(SOURCE[row, :S], TARGET[row, :T], np.array(PLACES[row]))
        np.testing.assert_allclose(logits_BTV[row, :T], expected, rtol=1e-4, atol=1e-4)


def test_step_by_step_for_beams_of_their_own():
    """Two beams of each sentence have passed different numbers of words."""
    model, params = tiny(PARSER)
    bound, other = model.bind(params), np.array([[0, 1, 2, 3, 3], [0, 0, 0, 0, 1], [0, 0, 1, 1, 2]])
    # Without padding, which has a state of its own here.
    target = np.where(TARGET == 0, 9, TARGET)
    expected = [jit(model.apply)(params, SOURCE, target, words=(BEGINS, read)) for read in (READ, other)]
    memory = jit(bound.encode)(SOURCE, begins_BS=BEGINS)
    cache = bound.init_cache(len(SOURCE), target.shape[1], beams=2)

    @jit
    def step(tokens, cache, at, read):
        return bound.decode(tokens, memory, cache=cache, at_B=at, read_BT=read)[:2]

    for t in range(target.shape[1]):
        tokens = np.repeat(target[:, t], 2)[:, None]
        read = np.stack([READ[:, t], other[:, t]], axis=1).reshape(-1, 1)
        logits, cache = step(tokens, cache, jnp.int32(t), read)
        for beam in (0, 1):
            np.testing.assert_allclose(logits[beam::2, 0], expected[beam][:, t], rtol=1e-4, atol=1e-4)


def test_a_pass_with_all_weights_is_the_same_pass():
    model, params = tiny(PARSER)
    found, weights = jit(model.bind(params).attention)(SOURCE, TARGET, words=(BEGINS, READ))
    expected = jit(model.apply)(params, SOURCE, TARGET, words=(BEGINS, READ))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert weights["cross"].shape == (3, 2, 4, 5, 6)


NUMBERS = np.ones_like(SOURCE)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PARSER, {}, "begins_BS is missing: with model.hard_attention, give True at the first piece of each word"),
        (PARSER, {"words": (BEGINS[:, :2], READ)}, "begins_BS"),
        (PARSER, {"words": (BEGINS.astype(int), READ)}, "begins_BS"),
        (PARSER, {"words": (BEGINS, None)}, "read_BT is missing: with model.hard_attention, give the number of words"),
        (PARSER, {"words": (BEGINS, READ[:, :2])}, "read_BT"),
        (PARSER, {"words": (BEGINS, READ / 2)}, "read_BT"),
        (PARSER, {"words": BEGINS}, "words"),
        (
            PARSER,
            {"words": (BEGINS, READ), "segments": (NUMBERS, NUMBERS[:, :5]), "positions": (NUMBERS, NUMBERS[:, :5])},
            "segments are given: with model.hard_attention, each row holds one sentence",
        ),
        (TINY, {"words": (BEGINS, None)}, "begins_BS is given, but model.hard_attention is false: leave it out"),
        (TINY, {"words": (None, READ)}, "read_BT is given, but model.hard_attention is false: leave it out"),
    ],
)
def test_wrong_arguments_are_named(config, options, message):
    model, params = tiny(config)
    with pytest.raises(UserError, match=f"^{message}"):
        jax.eval_shape(lambda: model.apply(params, SOURCE, TARGET, **options))
