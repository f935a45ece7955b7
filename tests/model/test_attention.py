from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from quick import jit

from transformer.config import ModelConfig
from transformer.model import attention
from transformer.model.attention import KV, Attention, additive, attend, fused, fusible, unscaled, write
from transformer.model.initializers import GLOROT

RNG = np.random.default_rng(0)


def as_kv(k_BSKH, v_BSKH):
    return KV(jnp.asarray(k_BSKH).transpose(0, 2, 3, 1), jnp.asarray(v_BSKH).swapaxes(1, 2))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
def test_attend_is_equation_1_head_by_head(kv_heads):
    """The scale is that of the key size, not the value size. Each key/value head serves neighbouring query heads."""
    B, T, S, N, d_k, d_v = 2, 4, 5, 6, 3, 7
    q, k, v = normal(B, T, N, d_k), normal(B, S, kv_heads, d_k), normal(B, S, kv_heads, d_v)
    mask = RNG.random((B, T, S)) < 0.7
    mask[:, :, 0] = True
    y, weights = attend(jnp.asarray(q), as_kv(k, v), jnp.asarray(mask), want_weights=True)
    assert y.shape == (B, T, N, d_v) and weights.shape == (B, N, T, S)
    for b in range(B):
        for n in range(N):
            head = n // (N // kv_heads)
            scores = q[b, :, n] @ k[b, :, head].T / np.sqrt(d_k)
            w = reference.softmax(np.where(mask[b], scores, -np.inf))
            np.testing.assert_allclose(weights[b, n], w, atol=1e-6)
            np.testing.assert_allclose(y[b, :, n], w @ v[b, :, head], atol=1e-5)
    assert (np.asarray(weights)[~np.broadcast_to(mask[:, None], weights.shape)] == 0).all()
    assert attend(q, as_kv(k, v), mask)[1] is None


def test_a_mask_of_size_1_stands_for_all():
    q, kv = normal(2, 3, 4, 5), as_kv(normal(2, 6, 4, 5), normal(2, 6, 4, 5))
    mask = np.array([[[True, False, True, True, False, True]]])
    wide, _ = attend(q, kv, jnp.asarray(np.broadcast_to(mask, (2, 3, 6))))
    np.testing.assert_array_equal(attend(q, kv, jnp.asarray(mask))[0], wide)


def test_a_fully_masked_row_gives_zeros_and_finite_gradients():
    q, kv = normal(1, 3, 2, 4), as_kv(normal(1, 5, 2, 4), normal(1, 5, 2, 4))
    mask = jnp.ones((1, 3, 5), bool).at[0, 1].set(False)

    def total(q, kv):
        y, weights = attend(q, kv, mask, want_weights=True)
        return (y**2).sum(), (y, weights)

    (_, (y, weights)), grads = jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(q, kv)
    assert not np.asarray(y[0, 1]).any() and not np.asarray(weights[0, :, 1]).any()
    assert np.asarray(y[0, 0]).all()
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
    assert not np.asarray(grads[0][0, 1]).any() and np.asarray(grads[0][0, 0]).any()


def test_the_softmax_is_float32_for_bfloat16_inputs():
    """Logits near 100, where bfloat16 has a spacing of 0.5."""
    q = jnp.full((1, 1, 1, 4), 10.0, jnp.bfloat16)
    k = jnp.asarray(np.array([5.0, 4.9375, 5.0625])[None, :, None, None] * np.ones((1, 3, 1, 4)), jnp.bfloat16)
    v = jnp.ones((1, 3, 1, 4), jnp.bfloat16)
    y, weights = attend(q, as_kv(k, v), jnp.ones((1, 1, 3), bool), want_weights=True)
    assert y.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    expected = reference.softmax(np.array([100, 98.75, 101.25]))
    np.testing.assert_allclose(weights[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(("kv_heads", "d_k", "d_v"), [(4, 3, 3), (2, 3, 5), (1, 6, 2)])
def test_attention_layer(kv_heads, d_k, d_v):
    x, memory = normal(2, 3, 8), normal(2, 5, 8)
    config = ModelConfig(d_model=8, heads=4, kv_heads=kv_heads, d_k=d_k, d_v=d_v)

    @jit
    def run(x, memory):
        layer = Attention(config, "encoder", start=GLOROT, rngs=nnx.Rngs(0))
        y, _ = layer(x, layer.kv(memory), jnp.ones((1, 1, 5), bool))
        return y, {name: getattr(layer, name)[...] for name in ("query", "key", "value", "output")}

    y, p = jax.tree.map(np.asarray, run(x, memory))
    assert {k: v.shape for k, v in p.items()} == {
        "query": (8, 4, d_k), "key": (8, kv_heads, d_k), "value": (8, kv_heads, d_v), "output": (4, d_v, 8),
    }  # fmt: skip
    # Glorot's limit for the matrix of all heads together.
    width = {"query": 4 * d_k, "key": kv_heads * d_k, "value": kv_heads * d_v, "output": 4 * d_v}
    for name, w in p.items():
        limit = (6 / (8 + width[name])) ** 0.5
        assert 0.8 * limit < abs(w).max() <= limit
    for b in range(2):
        np.testing.assert_allclose(y[b], reference.attention(p, x[b], memory[b])[0], atol=1e-5)


def test_rows_that_share_a_memory_equal_rows_that_have_their_own():
    """Row b * M + m attends to memory b; T may be more than 1."""
    B, M, T, S = 2, 3, 2, 5
    x, memory = normal(B * M, T, 8), normal(B, S, 8)
    mask = (np.arange(S) < np.array([3, 5])[:, None])[:, None]
    config = ModelConfig(d_model=8, heads=4, kv_heads=2, d_k=3, d_v=5)

    @jit
    def run(x, memory):
        layer = Attention(config, "cross", start=GLOROT, rngs=nnx.Rngs(0))
        shared = layer(x, layer.kv(memory), mask, want_weights=True)
        return shared, layer(x, layer.kv(jnp.repeat(memory, M, axis=0)), np.repeat(mask, M, axis=0), want_weights=True)

    (shared, shared_weights), (own, own_weights) = run(x, memory)
    np.testing.assert_allclose(shared, own, atol=1e-6)
    np.testing.assert_allclose(shared_weights, own_weights, atol=1e-6)
    assert own_weights.shape == (B * M, 4, T, S)
    assert abs(np.asarray(own)[0] - np.asarray(own)[1]).max() > 1e-3


def test_write_puts_each_beam_in_its_own_slots():
    """Three sentences of two beams, two new pieces each, from slot 5 on."""
    M, T, end = 2, 2, 5
    cache = KV(jnp.full((3, 2, 1, 12), 9.0), jnp.full((3, 2, 12, 3), 9.0, jnp.bfloat16))
    k, v = normal(3 * M, T, 2, 1), normal(3 * M, T, 2, 3)
    written = write(cache, end, as_kv(k, v))
    expected_k, expected_v = (np.array(x, np.float32) for x in cache)
    for row in range(3):
        for m in range(M):
            for t in range(T):
                slot = end + t * M + m
                expected_k[row, :, :, slot] = k[row * M + m, t]
                expected_v[row, :, slot] = np.asarray(jnp.asarray(v[row * M + m, t], jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(written.k_BKHS, expected_k)
    np.testing.assert_array_equal(np.asarray(written.v_BKSH, np.float32), expected_v)
    assert written.v_BKSH.dtype == jnp.bfloat16


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_fused_form_equals_the_plain_one(kv_heads):
    """With XLA's implementation: masks of full size and of size 1, a fully masked row, and gradients."""
    B, T, S, N, H = 2, 4, 6, 4, 8
    q, kv, v = normal(B, T, N, H), as_kv(normal(B, S, kv_heads, H), normal(B, S, kv_heads, H)), normal(B, T, N, H)
    full = RNG.random((B, T, S)) < 0.5
    full[0, 1] = False
    full[:, 0, 0] = True
    forms = (lambda *args: attend(*args)[0], lambda *args: fused(*args, "xla"))
    for mask in (full, full[:, :1], full[:1]):

        def loss(form, q, kv, mask=mask):
            return (form(q, kv, jnp.asarray(mask)) * v).sum()

        plain, one = (jax.value_and_grad(partial(loss, form), (0, 1))(jnp.asarray(q), kv) for form in forms)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_without_a_gpu_nothing_is_fused():
    q, kv = jnp.zeros((1, 2, 2, 8), jnp.bfloat16), as_kv(np.zeros((1, 2, 2, 8)), np.zeros((1, 2, 2, 8)))
    assert fusible(q, kv) == (jax.default_backend() == "gpu")


# ---- Other comparisons of query and key ------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("sums", [1, 200, 2**20])
def test_additive_scores_are_those_of_bahdanau(kv_heads, sums, monkeypatch):
    """v^T tanh(q + k) for each head, position by position, in any number of blocks; so are the gradients."""
    monkeypatch.setattr(attention, "SUMS", {"other": sums})
    B, T, S, N, H = 2, 4, 5, 6, 3
    q, k, v, score = normal(B, T, N, H), normal(B, S, kv_heads, H), normal(B, S, kv_heads, 7), normal(H, N)
    mask = RNG.random((B, T, S)) < 0.7
    mask[:, :, 0] = True

    def ours(q, k, score):
        y, weights = attend(
            q, as_kv(k, v), jnp.asarray(mask), logits=partial(additive, score_HN=score), want_weights=True
        )
        return (y**2).sum(), (y, weights)

    def plain(q, k, score):
        k, values = (jnp.repeat(x, N // kv_heads, axis=2) for x in (k, v))
        logits = jnp.einsum("hn,btsnh->bnts", score, jnp.tanh(q[:, :, None] + k[:, None]))
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf))
        y = jnp.einsum("bnts,bsnh->btnh", weights, values)
        return (y**2).sum(), (y, weights)

    found, expected = (jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(q, k, score) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_additive_attention_of_a_fully_masked_row():
    q, kv, score = normal(1, 3, 2, 4), as_kv(normal(1, 5, 2, 4), normal(1, 5, 2, 4)), normal(4, 2)
    mask = jnp.ones((1, 3, 5), bool).at[0, 1].set(False)

    def total(q, kv, score):
        y, _ = attend(q, kv, mask, logits=partial(additive, score_HN=score))
        return (y**2).sum(), y

    gradients, y = jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, kv, score)
    assert (np.asarray(y)[0, 1] == 0).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert (np.asarray(gradients[0])[0, 1] == 0).all()


def test_unscaled_scores_are_the_products():
    q, k = normal(2, 2, 4, 3), normal(2, 2, 3, 5)
    np.testing.assert_allclose(unscaled(jnp.asarray(q), jnp.asarray(k)), q @ k, atol=1e-6)


def test_additive_attention_never_stores_all_sums():
    """The memory of a forward and backward pass stays far below that of one array of all sums."""
    B, T, N, H = 4, 256, 4, 32
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, T, N, H), (B, T, N, H), (H, N))]

    def total(q, k, score):
        y, _ = attend(q, as_kv(k, k), jnp.ones((1, T, T), bool), logits=partial(additive, score_HN=score))
        return (y**2).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
    sums = 4 * B * N * T * T * H
    assert compiled.memory_analysis().temp_size_in_bytes < sums / 3
