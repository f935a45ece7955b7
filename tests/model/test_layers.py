import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.extend.random import threefry_2x32

from transformer.config import ModelConfig
from transformer.model.initializers import GLOROT
from transformer.model.inputs import sinusoids
from transformer.model.layers import Embedding, FeedForward, LayerNorm, dropout, fold, gelu, random_words
from transformer.model.products import einsum, matmul, product
from transformer.model.stack import SublayerNorm

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_sinusoids_interleave_sin_and_cos():
    got = np.asarray(sinusoids(jnp.array([[0, 1, 5], [7, 63, 200]]), 6))
    assert got.shape == (2, 3, 6) and got.dtype == np.float32
    assert got[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    # By hand, position 1 of d_model 6: the frequencies are 1, 10000^(-1/3) and 10000^(-2/3).
    np.testing.assert_allclose(got[0, 1], [0.841471, 0.540302, 0.046399, 0.998923, 0.002154, 0.999998], atol=1e-6)
    for place, position in zip([(0, 2), (1, 0), (1, 1), (1, 2)], [5, 7, 63, 200], strict=True):
        np.testing.assert_allclose(got[place], reference.position_encoding(position, 6), atol=2e-5)


def test_embedding_is_scaled_going_in_and_not_going_out():
    embedding = Embedding(ModelConfig(d_model=16, vocab_size=7), rngs=nnx.Rngs(0))
    table = normal(7, 16)
    embedding.table[...] = jnp.asarray(table)
    tokens = np.array([[3, 0, 6], [1, 1, 2]])
    np.testing.assert_allclose(embedding.embed(jnp.asarray(tokens)), table[tokens] * 4, rtol=1e-6)
    x = normal(2, 3, 16)
    np.testing.assert_allclose(embedding.logits(jnp.asarray(x)), x @ table.T, atol=1e-5)
    assert embedding.logits(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def layer_norm(kind, config, x):
    norm = kind(config)
    p = {"scale": normal(x.shape[-1]), "bias": normal(x.shape[-1])}
    norm.scale[...], norm.bias[...] = jnp.asarray(p["scale"]), jnp.asarray(p["bias"])
    return norm, p


def test_layer_norm():
    x = normal(2, 3, 8) * 5 + 3
    norm, p = layer_norm(LayerNorm, ModelConfig(d_model=8), x)
    np.testing.assert_allclose(norm(jnp.asarray(x)), reference.layer_norm(p, x.astype(np.float64)), atol=1e-5)
    assert np.isfinite(np.asarray(norm(jnp.full((1, 1, 8), 7.0)))).all()


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(normal(4, 64) * 0.5 + 100, jnp.bfloat16)  # bfloat16 has a spacing of 0.5 there
    norm, p = layer_norm(LayerNorm, ModelConfig(d_model=64), x)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    expected = reference.layer_norm(p, np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sublayer_norm_stands_where_the_config_says(pre_norm):
    x, w = normal(2, 3, 8), normal(8, 8)
    norm, p = layer_norm(SublayerNorm, ModelConfig(d_model=8, heads=1, pre_norm=pre_norm, dropout=0.5), x)
    got = norm.leave(jnp.asarray(x), norm.enter(jnp.asarray(x)) @ w, None)
    if pre_norm:
        expected = x + reference.layer_norm(p, x) @ w
    else:
        expected = reference.layer_norm(p, x + x @ w)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_feed_forward():
    layer = FeedForward(ModelConfig(d_model=6, d_ff=10), start=GLOROT, rngs=nnx.Rngs(0))
    p = {"w1": normal(6, 10), "b1": normal(10), "w2": normal(10, 6), "b2": normal(6)}
    for name, value in p.items():
        getattr(layer, name)[...] = jnp.asarray(value)
    x = normal(2, 3, 6)
    np.testing.assert_allclose(layer(jnp.asarray(x)), reference.feed_forward(p, x), atol=1e-5)


def test_product_contracts_last_axes_with_first():
    x, w = normal(2, 5, 3, 4), normal(3, 4, 7)
    np.testing.assert_allclose(product(x, w, axes=2), np.einsum("BTNH,NHD->BTD", x, w), atol=1e-5)
    x, w = normal(2, 5, 4), normal(4, 3, 7)
    np.testing.assert_allclose(product(x, w), np.einsum("BTD,DNH->BTNH", x, w), atol=1e-5)
    assert product(jnp.asarray(x, jnp.bfloat16), jnp.asarray(w)).dtype == jnp.bfloat16


@pytest.mark.parametrize("subscripts", ["BKXH,BKHS->BKXS", "BKXS,BKSH->BKXH", "XD,DE->XE", "XD,ED->XE"])
def test_gradients_of_products_are_those_jax_would_find(subscripts):
    """In float32 by JAX itself; in bfloat16 by the custom gradient, with numbers that bfloat16 represents exactly."""
    sizes = dict(zip("BKXHSDE", (2, 3, 4, 5, 6, 7, 8), strict=True))
    of_a, of_b, of_c = subscripts.replace("->", ",").split(",")
    a, b, dc = (np.round(normal(*(sizes[i] for i in own)) * 4) for own in (of_a, of_b, of_c))
    y, back = jax.vjp(lambda a, b: jnp.einsum(subscripts, a, b), a, b)
    for dtype in (jnp.float32, jnp.bfloat16):
        found, ours = jax.vjp(partial(einsum, subscripts), jnp.asarray(a, dtype), jnp.asarray(b))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, y)
        da, db = ours(jnp.asarray(dc))
        assert (da.dtype, db.dtype) == (dtype, jnp.float32)
        np.testing.assert_array_equal(db, back(dc)[1])
        np.testing.assert_array_equal(da, back(dc)[0].astype(dtype))


@pytest.mark.parametrize("w_axis", [0, 1])
def test_gradients_of_a_16_bit_product_are_summed_in_float32(w_axis):
    """The gradient of x is rounded to x's type. That of the float32 w, a sum over 3,000 rows, is not rounded."""
    x = jnp.asarray(normal(3_000, 5) + 1, jnp.bfloat16)
    w = jnp.asarray(normal(5, 4).T if w_axis else normal(5, 4))
    dy = jnp.asarray(normal(3_000, 4) + 1, jnp.bfloat16)
    y, back = jax.vjp(lambda x, w: matmul(x, w, jnp.bfloat16, w_axis), x, w)
    dx, dw = back(dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    x, dy, w = (np.asarray(a, np.float64) for a in (x, dy, w.astype(jnp.bfloat16)))
    w_DE = w.T if w_axis else w
    np.testing.assert_allclose(np.asarray(y, float), x @ w_DE, rtol=2**-8, atol=1e-2)
    np.testing.assert_allclose(np.asarray(dx, float), dy @ w_DE.T, rtol=2**-8, atol=1e-2)
    np.testing.assert_allclose(dw, (dy.T @ x) if w_axis else (x.T @ dy), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("width", [64, 63])
def test_dropout_rate_and_scale(rate, width):
    x = jnp.full((60, 50, width), 2.0)
    y = np.asarray(dropout(x, rate, jax.random.key(3)))
    assert y.shape == x.shape and y.dtype == np.float32
    kept = 2 / (1 - rate)
    assert np.all((y == 0) | (abs(y - kept) < 1e-3))
    # Within five standard deviations of this many coin flips; also for each index of the last axis, over the others.
    assert abs((y == 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / y.size) + 1e-5
    assert abs((y == 0).mean(axis=(0, 1)) - rate).max() < 5 * math.sqrt(rate * (1 - rate) / 3000)
    assert y.mean() == pytest.approx(2, rel=0.01)


def test_dropout_elements_are_independent():
    dropped = np.asarray(dropout(jnp.ones((64, 400)), 0.5, jax.random.key(0))) == 0
    correlations = np.corrcoef(dropped)[~np.eye(64, dtype=bool)]  # of rows; four of them share two random words
    assert abs(correlations).max() < 0.3
    correlations = np.corrcoef(dropped.T)[~np.eye(400, dtype=bool)]
    assert abs(correlations).max() < 0.75


@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 4, 5)])
def test_random_words_are_those_of_threefry_at_each_position(shape):
    key = jax.random.key(7)
    x, y = (np.asarray(words).ravel() for words in random_words(key, shape))
    row, last = np.divmod(np.arange(math.prod(shape), dtype=np.uint32), np.uint32(shape[-1]))
    expected = threefry_2x32(jax.random.key_data(key), jnp.concatenate([row, last]))
    np.testing.assert_array_equal(np.concatenate([x, y]), expected)


def test_gelu_is_that_of_the_error_function():
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x], atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(partial(jax.nn.gelu, approximate=False)))(x), atol=1e-6)


def test_dropout_without_a_key_or_a_rate_changes_nothing():
    x = jnp.asarray(normal(3, 4))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_depends_on_the_key_alone_and_keeps_the_type():
    x = jnp.ones((8, 32), jnp.bfloat16)
    first, again, other = (np.asarray(dropout(x, 0.5, jax.random.key(k)), np.float32) for k in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert dropout(x, 0.5, jax.random.key(1)).dtype == jnp.bfloat16


def test_gradient_of_dropout_is_its_mask():
    x = jnp.asarray(normal(8, 32)) + 10
    y, grad = jax.value_and_grad(lambda x: dropout(x, 0.5, jax.random.key(1)).sum())(x)
    assert set(np.unique(np.asarray(grad))) == {0.0, 2.0}
    np.testing.assert_allclose((grad * x).sum(), y, rtol=1e-6)


def test_fold_gives_different_keys_and_keeps_none():
    key = jax.random.key(0)
    assert fold(None, 3) is None
    folded = {tuple(jax.random.key_data(k).tolist()) for k in (key, fold(key, 0), fold(key, 1), fold(fold(key, 0), 0))}
    assert len(folded) == 4


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or "amx_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="this processor has no matrix units for bfloat16: XLA multiplies in float32 anyway",
)
@pytest.mark.parametrize("subscripts", ["XD,DE->XE", "XD,ED->XE", "XV,XD->VD"])
def test_products_of_16_bits_stay_so_in_their_gradients(subscripts):
    """XLA computes a product that its matrix units do not support in float32, four times as slow."""
    sizes = {"X": 256, "D": 128, "E": 384, "V": 512}
    of_a, of_b = subscripts.split("->")[0].split(",")
    a, b = (normal(*(sizes[i] for i in of)).astype(jnp.bfloat16) for of in (of_a, of_b))
    loss = jax.jit(jax.grad(lambda a, b: jnp.sum(jnp.square(einsum(subscripts, a, b))), argnums=(0, 1)))
    program = loss.lower(a, b).compile().as_text()
    types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", program))
    operands = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)\)", program)
    assert len(operands) == 3
    assert {types[name] for pair in operands for name in pair} == {"bf16"}
