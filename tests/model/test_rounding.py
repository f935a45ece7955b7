import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import jit
from tiny import SHALLOW

from transformer.config import ModelConfig
from transformer.model import build
from transformer.model.layers import Embedding
from transformer.model.products import product
from transformer.model.rounding import INNER, Rounded, rounded

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def integers(x_XD):
    """Rows of x, rounded to a grid of 255 steps that ends at the row's largest element."""
    scale = np.abs(x_XD).max(axis=1, keepdims=True) / 127
    return np.round(np.divide(x_XD, scale, where=scale > 0, out=np.zeros_like(x_XD))).astype(int), scale


def of(name, w, dtype):
    return rounded({name: jnp.asarray(w)}, dtype)[name]


@pytest.mark.parametrize(
    "name, shape, axes", [("w1", (24, 40), 1), ("query", (24, 5, 8), 1), ("output", (6, 4, 10), 2)]
)
def test_an_int8_product_is_that_of_integers_and_scales(name, shape, axes):
    w = normal(*shape) * RNG.uniform(0.1, 10, shape[-1])
    x = normal(3, 7, *shape[:axes]) * RNG.uniform(0.01, 100, (3, 7) + (1,) * axes).astype(np.float32)
    y = product(jnp.asarray(x), of(name, w, "int8"), axes)
    D = 24
    x_int, x_scale = integers(x.reshape(-1, D))
    w_int, w_scale = integers(w.reshape(D, -1).T)
    expected = (x_int @ w_int.T) * x_scale * w_scale.T
    assert y.shape == (3, 7, *shape[axes:])
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-5)
    # The result is close to the exact product: half a step of error on each side.
    exact = x.reshape(-1, D) @ w.reshape(D, -1)
    bound = D * (x_scale * np.abs(w).max() + np.abs(x.reshape(-1, D)).max(1, keepdims=True) * w_scale.T)
    assert (np.abs(expected - exact) < bound).all()


def test_int8_rows_and_outputs_of_zeros_are_zeros():
    w = normal(8, 4)
    w[:, 2] = 0
    y = product(jnp.zeros((1, 8)), of("w1", w, "int8"))
    np.testing.assert_array_equal(y, np.zeros((1, 4)))
    assert product(jnp.ones((1, 8)), of("w1", w, "int8"))[0, 2] == 0


def test_a_bfloat16_product_sums_in_float32():
    # Sums of 4,096 ones and small numbers: sums in bfloat16 would lose the small ones.
    x, w = np.ones((2, 4_096), np.float32), np.full((4_096, 3), 1 + 2**-7, np.float32)
    y = product(jnp.asarray(x), of("w1", w, "bfloat16"), dtype=jnp.float32)
    np.testing.assert_allclose(y, np.full((2, 3), 4_096 * (1 + 2**-7)), rtol=1e-6)
    assert product(jnp.asarray(x, jnp.bfloat16), of("w1", w, "bfloat16")).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_a_table_is_looked_up_and_multiplied_with(dtype, tolerance):
    embedding = Embedding(ModelConfig(d_model=16, vocab_size=20), rngs=nnx.Rngs(0))
    table = np.asarray(embedding.table[...])
    tokens, x = jnp.asarray([[3, 19], [0, 3]]), jnp.asarray(normal(2, 2, 16))
    rows, logits = embedding.embed(tokens), embedding.logits(x)
    embedding.table = nnx.Param(of("table", table, dtype))
    assert embedding.embed(tokens).dtype == embedding.logits(x).dtype == jnp.float32
    np.testing.assert_allclose(embedding.embed(tokens), rows, atol=tolerance * np.abs(rows).max())
    np.testing.assert_allclose(embedding.logits(x), logits, atol=4 * tolerance * np.abs(logits).max())


def test_a_whole_model_under_rounded_parameters():
    model = build(SHALLOW.with_vocabulary(50))
    params = model.init(jax.random.key(0))
    source, target = (jnp.asarray(RNG.integers(4, 50, (3, 9))) for _ in range(2))
    exact = jit(model.apply)(params, source, target)
    for dtype, tolerance in (("bfloat16", 0.02), ("int8", 0.03)):
        logits = jit(model.apply)(rounded(params, dtype), source, target)
        assert logits.dtype == jnp.float32
        off = np.abs(logits - exact).max() / np.abs(exact).max()
        assert 1e-5 < off < tolerance, (dtype, off)
    # Rounding once equals rounding at each use.
    half = build(dataclasses.replace(SHALLOW, dtype="bfloat16").with_vocabulary(50))
    once, each = jit(half.apply)(rounded(params, "bfloat16"), source, target), jit(half.apply)(params, source, target)
    np.testing.assert_allclose(once, each, atol=0.01 * np.abs(each).max())


BERT = {"decoder_layers": 0, "head": "pretraining", "token_types": 2, "input_norm": True, "output_bias": True}
LEFT = {"scale", "bias", "b1", "b2"}


@pytest.mark.parametrize(
    ("fields", "left"),
    [({}, {*LEFT, "source_positions", "target_positions"}), (BERT, {*LEFT, "positions", "token_types", "output_bias"})],
)
def test_every_matrix_is_rounded_and_nothing_else(fields, left):
    config = dataclasses.replace(SHALLOW, positions="learned", max_positions=30, **fields)
    params = build(config.with_vocabulary(50)).init(jax.random.key(0))
    assert rounded(params, "float32") == params
    is_rounded = lambda leaf: isinstance(leaf, Rounded)  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(rounded(params, "int8"), is_leaf=is_rounded)[0]
    for path, leaf in found:
        name = path[-1].key
        assert is_rounded(leaf) == (name in INNER), path
        if is_rounded(leaf):
            assert leaf.rows_ED.dtype == jnp.int8
            assert leaf.rows_ED.size == np.prod(leaf.shape)
    assert {path[-1].key for path, leaf in found if not is_rounded(leaf)} == left
    shown = {path[-1].key: leaf for path, leaf in found if not is_rounded(leaf)}
    assert all(leaf.ndim == 1 or name.endswith(("positions", "types")) for name, leaf in shown.items())


def test_an_encoder_alone_under_rounded_parameters():
    model = build(dataclasses.replace(SHALLOW, **BERT).with_vocabulary(50))
    params, tokens = model.init(jax.random.key(0)), jnp.asarray(RNG.integers(0, 50, (3, 9)))
    exact = jit(model.apply)(params, tokens)
    for dtype, tolerance in (("bfloat16", 0.03), ("int8", 0.05)):
        for found, expected in zip(jit(model.apply)(rounded(params, dtype), tokens), exact, strict=True):
            assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < tolerance, dtype


def test_a_wrong_shape_is_told_of_rounded_parameters_too():
    params = build(SHALLOW.with_vocabulary(50)).init(jax.random.key(0))
    with pytest.raises(ValueError, match="embedding/table has shape"):
        build(SHALLOW.with_vocabulary(51)).apply(rounded(params, "int8"), jnp.ones((1, 3), int), jnp.ones((1, 3), int))
