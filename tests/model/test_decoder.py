"""The decoder alone equals the float64 reference, cached or not, packed or not; every id is a piece."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from reference import Reference
from tiny import TINY, VOCABULARY, random_params

from transformer.config import GPT2, AttentionConfig, UserError
from transformer.model import Decoder, Memory, build
from transformer.training.flops import update_flops

ALONE = dataclasses.replace(TINY, encoder_layers=0)
GPT = dataclasses.replace(
    *(GPT2,),
    **{"decoder_layers": 2, "d_model": 16, "d_ff": 24, "heads": 4, "max_positions": 12, "dropout": 0.0},
)
CONFIGS = {
    "the paper's decoder": ALONE,
    "GPT-2": GPT,
    "grouped-query, untied": dataclasses.replace(ALONE, kv_heads=2, tied_embeddings="none", output_bias=True),
    "rotary, multi-query, inputs normalised": dataclasses.replace(
        ALONE, kv_heads=1, positions="rotary", input_norm=True
    ),
    "cross-layer, window": dataclasses.replace(
        ALONE, decoder_layers=4, decoder_attention=AttentionConfig(kv_sharing=2, window=2), pre_norm=True
    ),
}
TEXT = np.array([[0, 9, 4, 7, 12, 3, 0, 5], [2, 6, 6, 8, 10, 11, 4, 1], [1, 3, 0, 0, 9, 9, 7, 7]])


@functools.cache
def model(name):
    built = build(CONFIGS[name].with_vocabulary(VOCABULARY))
    return built, random_params(built)


@functools.cache
def logits(name):
    built, params = model(name)
    return np.asarray(jit(built.apply)(params, TEXT))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_reference(name):
    built, params = model(name)
    for row, expected in zip(TEXT, logits(name), strict=True):
        np.testing.assert_allclose(expected, reference(built.config, params, row), rtol=2e-4, atol=2e-5)


def reference(config, params, tokens):
    """Logits (T, V) of one text: a pre- or post-norm stack of masked self-attention and feed-forward."""
    of = Reference(config, params)
    p = of.p
    x = of.alone("decoder", of.inputs(p["embedding"]["table"], p.get("positions"), tokens, p.get("input_norm")))
    table = p.get("output_embedding", p["embedding"])["table"]
    return x @ table.T + p.get("output_bias", 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_at_once_and_then_piece_by_piece(name):
    """Rows have prompts of different lengths: row b goes on from position 3 + b."""
    built, params = model(name)
    lengths = 3 + np.arange(3)

    @jit
    def prompt(tokens):
        bound = built.bind(params)
        cache = bound.init_cache(3, 13)
        cache = cache._replace(kv=jax.tree.map(lambda x: x + 7.0, cache.kv))  # must not be seen
        return bound.decode(tokens, cache=cache)[1]

    @jit
    def step(tokens, cache, at):
        return built.bind(params).decode(tokens, cache=cache, at_B=at)[:2]

    cache = prompt(TEXT[:, : lengths.max()])
    slots = np.arange(cache.seen_BMS.shape[2])
    cache = cache._replace(seen_BMS=cache.seen_BMS & (slots < lengths[:, None])[:, None])
    for t in range(3):
        at = lengths + t
        found, cache = step(TEXT[np.arange(3), at][:, None], cache, jnp.asarray(at))
        np.testing.assert_allclose(found[:, 0], logits(name)[np.arange(3), at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["GPT-2", "cross-layer, window", "rotary, multi-query, inputs normalised"])
def test_packed_documents_do_not_see_each_other(name):
    built, params = model(name)
    numbers = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 2, 2, 2, 3, 3, 0, 0], [1] * 8])
    packed = jit(built.apply)(params, TEXT, segments_BT=numbers)
    for row, of_row, found in zip(TEXT, numbers, packed, strict=True):
        for number in range(1, of_row.max() + 1):
            places = np.flatnonzero(of_row == number)
            alone = reference(built.config, params, row[places])
            np.testing.assert_allclose(found[places], alone, rtol=2e-4, atol=2e-5)


def test_no_later_piece_is_seen():
    built, params = model("GPT-2")
    changed = TEXT.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCABULARY
    found = np.asarray(jit(built.apply)(params, changed))
    np.testing.assert_array_equal(found[:, :5], logits("GPT-2")[:, :5])
    assert (found[:, 5] != logits("GPT-2")[:, 5]).any(axis=-1).all()


def test_wrong_arguments_are_refused_in_one_line():
    built, params = model("GPT-2")
    bound = built.bind(params)
    assert isinstance(bound, Decoder)
    nothing = jnp.zeros((3, 1), bool)
    for error, arguments, options in (
        (r"^memory is a Memory: a model without encoder has none", (TEXT, Memory((), nothing, nothing)), {}),
        (r"^tokens_BT\[0, 0\] = 99: ids must be 0 or more and below", (TEXT + 99,), {}),
        (r"^tokens_BT has 16 positions, but this model has 12 learned ones", (np.tile(TEXT, 2),), {}),
        (r"^tokens_BT has 3 rows: the cache is for 2 sentences", (TEXT,), {"cache": bound.init_cache(2, 9)}),
        (r"^the cache has room for 4 positions and holds 0 already", (TEXT,), {"cache": bound.init_cache(3, 4)}),
    ):
        with pytest.raises(UserError, match=error):
            bound.decode(*arguments, **options)


def test_the_parameters_of_gpt2_and_the_arithmetic_of_an_update():
    """124,439,808 (Radford et al. 2019); an update is three times the products of a forward pass."""
    built = build(GPT2.with_vocabulary(50_257))
    assert sum(x.size for x in jax.tree.leaves(built.abstract_params)) == 124_439_808
    B, T, D, L, V = 3, 5, 768, 12, 50_257
    blocks = L * (T * 24 * D**2 + 4 * T**2 * D)
    assert update_flops(built.config, B, 0, T) == 3 * B * (blocks + 2 * T * D * V)
