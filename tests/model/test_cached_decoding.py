"""Decoding step by step with a cache equals one pass over the whole target."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from tiny import BOS, SOURCE, TINY, VOCABULARY, tiny

from transformer.config import AttentionConfig
from transformer.model import attention

CONFIGS = {
    "multi-head": dataclasses.replace(TINY, encoder_layers=1),
    "grouped-query, learned positions": dataclasses.replace(
        TINY, encoder_layers=1, kv_heads=2, d_k=6, d_v=3, positions="learned"
    ),
    "multi-query, pre-norm": dataclasses.replace(TINY, encoder_layers=1, kv_heads=1, pre_norm=True),
    "rotary, biases": dataclasses.replace(
        TINY, encoder_layers=1, kv_heads=2, positions="rotary", attention_bias=True, output_bias=True
    ),
    "cross-layer": dataclasses.replace(TINY, decoder_layers=3, kv_sharing=2),
    "each its own": dataclasses.replace(
        TINY,
        decoder_layers=4,
        encoder_attention=AttentionConfig(kv_heads=2, window=1),
        decoder_attention=AttentionConfig(kv_heads=1, kv_sharing=3, window=2),
        cross_attention=AttentionConfig(kv_sharing=2, window=1),
    ),
    "additive": dataclasses.replace(TINY, encoder_layers=1, kv_heads=2, attention_score="additive"),
    "unscaled, values are the keys": dataclasses.replace(
        TINY, encoder_layers=1, kv_heads=1, attention_score="unscaled", values="keys"
    ),
    "fused": dataclasses.replace(
        TINY,
        encoder_layers=1,
        kv_heads=2,
        decoder_attention=AttentionConfig(kv_heads=1, kv_sharing=2, window=2),
        attention_kernel="cudnn",
    ),
}
GROUPED = "grouped-query, learned positions"
TARGET = np.array([[BOS, 9, 4, 7, 12, 3, 5], [BOS, 6, 6, 8, 10, 11, 4], [BOS, 3, 8, 5, 9, 9, 7]])


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Give models that ask for a fused kernel XLA's implementation. Returns the query shapes of its calls."""
    calls, kernel = [], attention.fused
    monkeypatch.setattr(attention, "fusible", lambda q_BTNH, kv: True)
    monkeypatch.setattr(attention, "fused", lambda q, *rest: calls.append(q.shape) or kernel(q, *rest, "xla"))
    return calls


@functools.cache
def programs(name):
    """Logits of whole targets, the compiled step, and an empty cache filled with values that must not be seen."""
    model, params = tiny(CONFIGS[name])

    @jit
    def whole(source, target):
        memory = model.bind(params).encode(source)
        return memory, model.bind(params).decode(target, memory)[0]

    @jit
    def step(tokens, cache, at):
        return model.bind(params).decode(tokens, memory, cache=cache, at_B=at)[:2]

    memory, logits = whole(SOURCE, TARGET)
    # Room for more positions than needed.
    empty = model.bind(params).init_cache(len(TARGET), 13)
    cache = empty._replace(kv=jax.tree.map(lambda x: x + 7.0, empty.kv))
    return np.asarray(logits), step, cache


@pytest.mark.parametrize("name", CONFIGS)
def test_step_by_step_with_rows_at_different_places(name):
    """Row b repeats its first piece b times before it continues."""
    whole, step, cache = programs(name)
    rows = np.arange(3)
    seen = np.zeros(whole.shape[:2], int)
    for i in range(TARGET.shape[1] + 2):
        at = np.clip(i - rows, 0, TARGET.shape[1] - 1)
        logits, cache = step(TARGET[rows, at][:, None], cache, at)
        assert logits.shape == (3, 1, VOCABULARY) and logits.dtype == jnp.float32
        np.testing.assert_allclose(logits[:, 0], whole[rows, at], atol=1e-5)
        seen[rows, at] += 1
    assert seen.all()


def test_the_default_position_is_behind_the_pieces_in_the_cache():
    """In compiled steps, too, with beams that have changed places: as in a search of one's own."""
    model, params = tiny(CONFIGS["multi-head"])
    memory = jit(model.bind(params).encode)(SOURCE)

    @functools.partial(jit, static_argnames="given")
    def steps(tokens, given):
        def step(cache, t):
            at = {"at_B": t} if given else {}
            now = jax.lax.dynamic_slice_in_dim(tokens, t, 1, axis=1)
            logits, cache, _ = model.bind(params).decode(now, memory, cache=cache, **at)
            return cache.reorder(jnp.array([[1, 0]] * len(SOURCE))), logits

        cache = model.bind(params).init_cache(len(SOURCE), 6, beams=2)
        return jax.lax.scan(step, cache, jnp.arange(tokens.shape[1]))[1]

    tokens = jnp.repeat(TARGET, 2, axis=0).at[1::2, 1:].add(1)
    np.testing.assert_allclose(steps(tokens, given=False), steps(tokens, given=True), atol=1e-6)


def test_a_fused_kernel_finds_the_same(fused):
    """Logits and gradients of whole passes, and steps of beams. The kernel is not used when weights are wanted."""
    (model, params), (plain, _) = (
        tiny(CONFIGS["fused"]),
        tiny(dataclasses.replace(CONFIGS["fused"], attention_kernel="plain")),
    )

    @functools.partial(jit, static_argnums=0)
    def gradient(model, params):
        def loss(params):
            logits = model.apply(params, SOURCE, TARGET)
            return jnp.sin(logits).sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    ((_, logits), grads), ((_, others), other_grads) = (gradient(own, params) for own in (plain, model))
    assert fused == [(3, 6, 4, 4)] + [(3, 7, 4, 4)] * 4
    np.testing.assert_allclose(others, logits, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other_grads, grads)

    @functools.partial(jit, static_argnums=(0, 3))
    def step(model, params, tokens, want_weights=False):
        memory = model.bind(params).encode(SOURCE)
        cache = model.bind(params).init_cache(3, 2, 2)
        return model.bind(params).decode(tokens, memory, cache=cache, want_weights=want_weights)[0]

    del fused[:]
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, size=(6, 2))
    found = step(model, params, tokens)
    assert fused == [(3, 6, 4, 4)] + [(3, 4, 4, 4)] * 4  # two pieces for each of two beams: four queries
    np.testing.assert_allclose(found, step(plain, params, tokens), atol=1e-5)
    np.testing.assert_allclose(step(model, params, tokens, True), found, atol=1e-5)
    assert fused[5:] == [(3, 6, 4, 4)] + [(3, 4, 4, 4)] * 2  # only cross-attention returns weights, unfused


def test_chunks_of_several_pieces():
    """Three pieces at once, at different positions; some pieces are decoded twice."""
    whole, step, cache = programs(GROUPED)
    rows = np.arange(3)[:, None]
    for at in ([0, 0, 0], [3, 1, 2], [4, 4, 3], [4, 4, 4]):
        places = np.array(at)[:, None] + np.arange(3)
        logits, cache = step(TARGET[rows, places], cache, np.array(at))
        np.testing.assert_allclose(logits, whole[rows, places], atol=1e-5)


def test_without_places_the_pieces_stand_at_the_beginning():
    whole, step, cache = programs(GROUPED)
    np.testing.assert_allclose(step(TARGET[:, :2], cache, None)[0], whole[:, :2], atol=1e-5)


def test_beams_share_one_memory():
    """M neighbouring target rows per source row equal M rows with a copy of the memory each; weights, too."""
    model, params = tiny(CONFIGS[GROUPED])
    M, target = 3, np.random.default_rng(0).integers(3, VOCABULARY, size=(9, 5))

    @jit
    def decode(source, target):
        memory = model.bind(params).encode(source)
        repeated = jax.tree.map(lambda x: jnp.repeat(x, M, axis=0), memory)
        cache = model.bind(params).init_cache(len(target), target.shape[1])
        shared = model.bind(params).decode(target, memory, want_weights=True)
        cached = model.bind(params).decode(target, memory, cache=cache, want_weights=True)
        own = model.bind(params).decode(target, repeated, want_weights=True)
        return [(logits, weights) for logits, _, weights in (shared, cached, own)]

    shared, cached, own = jax.tree.map(np.asarray, decode(SOURCE, target))
    for logits, weights in (shared, cached):
        np.testing.assert_allclose(logits, own[0], atol=1e-5)
        for layer, own_layer in zip(weights, own[1], strict=True):
            assert layer.shape == (9, 4, 5, 6)
            np.testing.assert_allclose(layer, own_layer, atol=1e-6)
    assert abs(own[1][0][0] - own[1][0][1]).max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_reordered_beams_see_their_own_past(name):
    """Beams continue other beams: keys and values stay in place, and the logits equal those of a full pass."""
    model, params = tiny(CONFIGS[name])
    B, M, T = 3, 4, 6
    rng = np.random.default_rng(0)

    @jit
    def start(source):
        memory = model.bind(params).encode(source)
        return memory, model.bind(params).init_cache(B, 3, M)

    @jit
    def step(tokens, memory, cache, at):
        return model.bind(params).decode(tokens, memory, cache=cache, at_B=at)[:2]

    @jit
    def whole(source, target):
        memory = model.bind(params).encode(source)
        return model.bind(params).decode(target, memory)[0]

    memory, cache = start(SOURCE)
    past = np.full((B, M, 1), BOS)
    for at in range(T):
        if at == 3:  # the cache is full: collect the slots that no beam sees
            keep = int(cache.used_B().max())
            assert keep < 3 * M
            cache = cache.collect(keep, T - at)
        logits, cache = step(past[:, :, -1].reshape(-1, 1), memory, cache, jnp.int32(at))
        target = np.pad(past, ((0, 0), (0, 0), (0, T - 1 - at))).reshape(B * M, T)
        np.testing.assert_allclose(logits[:, 0], whole(SOURCE, target)[:, at], atol=1e-5)
        parents = rng.integers(0, M, size=(B, M))
        cache = cache.reorder(jnp.asarray(parents))
        past = np.take_along_axis(past, parents[:, :, None], axis=1)
        past = np.concatenate([past, rng.integers(3, VOCABULARY, size=(B, M, 1))], axis=2)


def test_parents_are_beams_of_the_cache():
    model, params = tiny(CONFIGS[GROUPED])
    cache = model.bind(params).init_cache(1, 8, 2)
    for parents, told in (
        ([[0, 1]], "parents_BM is a list: give an array of integers"),
        (np.zeros(2, int), r"parents_BM has the shape \(2,\)"),
        (np.zeros((1, 2)), "parents_BM is of type float64: give integers"),
        (np.array([[5, 1]]), r"parents_BM\[0, 0\] = 5: ids must be 0 or more and below the number of beams, 2"),
        (np.array([[0, -1]]), r"parents_BM\[0, 1\] = -1"),
        (np.zeros((2, 2), int), r"parents_BM has the shape \(2, 2\): give \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"^{told}"):
            cache.reorder(parents)
    assert cache.reorder(np.array([[1, 1]], np.int8)).seen_BMS.shape == (1, 2, 16)


def test_init_cache_has_room_for_what_was_asked():
    model, params = tiny(CONFIGS[GROUPED])
    cache = model.bind(params).init_cache(5, 8, 3)
    assert [(kv.k_BKHS.shape, kv.v_BKSH.shape) for kv in cache.kv] == [((5, 2, 6, 24), (5, 2, 24, 3))] * 2
    assert cache.seen_BMS.shape == (5, 3, 24) and not cache.seen_BMS.any()
    shared, shared_params = tiny(CONFIGS["cross-layer"])
    assert len(shared.bind(shared_params).init_cache(5, 8).kv) == 2
