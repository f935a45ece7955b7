import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from reference import Reference
from tiny import BOS, EOS, SHALLOW, SOURCE, TARGET, TINY, VOCABULARY, forward, lengths, random_params, tiny

from transformer.config import AttentionConfig
from transformer.model import Run, build

CONFIGS = {
    "the paper's": TINY,
    "pre-norm, grouped, learned positions, two tables": dataclasses.replace(
        SHALLOW, pre_norm=True, kv_heads=2, d_k=6, d_v=3, positions="learned", tied_embeddings="target"
    ),
    "multi-query, no positions, three tables": dataclasses.replace(
        SHALLOW, kv_heads=1, positions="none", tied_embeddings="none"
    ),
}
OPTIONS = {
    "biases, gelu, learned positions, nothing scaled": dataclasses.replace(
        SHALLOW,
        attention_bias=True,
        output_bias=True,
        activation="gelu",
        positions="learned",
        embedding_scale=False,
        norm_eps=0.5,
        kv_heads=2,
        input_norm=True,
    ),
    "rotary, norms without bias": dataclasses.replace(
        TINY, positions="rotary", norm_bias=False, activation="swish", kv_sharing=2, kv_heads=1, pre_norm=True
    ),
    "unscaled, values are the keys": dataclasses.replace(
        SHALLOW, attention_score="unscaled", values="keys", attention_bias=True, kv_heads=2
    ),
    "additive": dataclasses.replace(SHALLOW, attention_score="additive", kv_heads=2, d_k=6, attention_bias=True),
    "additive, values are the keys, shared by layers": dataclasses.replace(
        TINY, attention_score="additive", values="keys", kv_sharing=2, kv_heads=1, pre_norm=True
    ),
    "rotary, biases shared by layers": dataclasses.replace(
        TINY, positions="rotary", attention_bias=True, activation="gelu_tanh", kv_sharing=2, d_k=6, d_v=3
    ),
}
SHARING = {
    "shared": dataclasses.replace(TINY, encoder_layers=3, decoder_layers=3, kv_sharing=2, kv_heads=2),
    "windows": dataclasses.replace(
        SHALLOW,
        encoder_attention=AttentionConfig(window=2),
        decoder_attention=AttentionConfig(window=1),
        cross_attention=AttentionConfig(window=0),
    ),
    "each its own": dataclasses.replace(
        TINY,
        encoder_layers=4,
        decoder_layers=4,
        pre_norm=True,
        encoder_attention=AttentionConfig(kv_heads=2, kv_sharing=3, window=1),
        decoder_attention=AttentionConfig(kv_heads=1, kv_sharing=2, window=2),
        cross_attention=AttentionConfig(kv_sharing=3, window=3),
    ),
}


@pytest.mark.parametrize("name", [*CONFIGS, *OPTIONS, *SHARING])
def test_forward_equals_plain_numpy(name):
    config = (CONFIGS | OPTIONS | SHARING)[name]
    model, params = tiny(config)

    @jit
    def parts(params, source, target):
        memory = model.bind(params).encode(source)
        logits, cache, weights = model.bind(params).decode(target, memory, want_weights=True)
        assert cache is None
        return logits, weights

    logits, weights = parts(params, SOURCE, TARGET)
    np.testing.assert_allclose(forward(config)(params, SOURCE, TARGET), logits, atol=2e-6)
    reference = Reference(config, params)
    for row, (S, T) in enumerate(zip(lengths(SOURCE), lengths(TARGET), strict=True)):
        expected, expected_weights = reference.logits(SOURCE[row, :S], TARGET[row, :T])
        assert abs(expected).max() > 1
        np.testing.assert_allclose(logits[row, :T], expected, atol=1e-5)
        for layer, expected_layer in zip(weights, expected_weights, strict=True):
            np.testing.assert_allclose(layer[row, :, :T, :S], expected_layer, atol=1e-6)
            assert not np.asarray(layer[row, :, :, S:]).any()


@pytest.mark.parametrize("name", ["the paper's", *OPTIONS])
def test_gradients_equal_plain_numpy(name):
    """The directional derivative of one number, in a random direction of all parameters, by differences in float64."""
    config = (CONFIGS | OPTIONS)[name]
    model, params = tiny(config)
    project = projection((5, VOCABULARY))
    found = jit(jax.grad(lambda params: (model.apply(params, SOURCE[:1], TARGET[:1])[0] * project).sum()))(params)
    direction = random_params(model, seed=1)

    def value(step):
        moved = jax.tree.map(
            lambda p, d: np.asarray(p, np.float64) + step * np.asarray(d, np.float64), params, direction
        )
        return (Reference(config, moved).logits(SOURCE[0], TARGET[0])[0] * project).sum()

    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        # A constant added to the keys of all positions, or to all logits of a position, changes no probability.
        assert np.abs(gradient).max() > 1e-3 or path[-1].key == "key_bias", path
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (np.asarray(g, np.float64) * d).sum(), found, direction)))
    assert along == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-4)


def test_random_offsets_of_positions():
    """In training, each row of each side begins at a random position up to the offset; otherwise all begin at 0."""
    config = dataclasses.replace(SHALLOW, positions="learned", position_offset=2, dropout=0.0)
    model, params = tiny(config)
    apply = jit(model.apply)
    source, target = np.tile(SOURCE[:1], (64, 1)), np.tile(TARGET[:1], (64, 1))
    drawn = np.asarray(apply(params, source, target, key=jax.random.key(0)))
    starts = [(s, t) for s in range(3) for t in range(3)]
    places = (
        np.array([s for s, _ in starts])[:, None] + np.arange(6),
        np.array([t for _, t in starts])[:, None] + np.arange(5),
    )
    expected = np.asarray(apply(params, source[:9], target[:9], positions=places))
    distance = np.abs(drawn[:, None] - expected[None]).max(axis=(2, 3))
    assert (distance.min(axis=1) < 1e-5).all()
    assert set(distance.argmin(axis=1)) == set(range(9))  # 64 draws of 9 values: almost certain
    plain = apply(params, source[:1], target[:1])
    np.testing.assert_allclose(plain[0], expected[0], atol=1e-5)


def test_rotary_positions_count_distances_only():
    config = dataclasses.replace(SHALLOW, positions="rotary", position_offset=50, dropout=0.0)
    apply, (_, params) = forward(config), tiny(config)
    plain = apply(params, SOURCE, TARGET)
    np.testing.assert_allclose(apply(params, SOURCE, TARGET, key=jax.random.key(0)), plain, atol=2e-5)
    swapped = apply(params, SOURCE[:, [1, 0, 2, 3, 4, 5]], TARGET)
    assert abs(swapped - plain).max() > 1e-2


def test_without_positions_order_is_not_seen():
    """The encoder does not see the order. The decoder's causal mask still gives it the order."""
    swapped = SOURCE[:, [1, 0, 2, 3, 4, 5]]
    for name, same in (("the paper's", False), ("multi-query, no positions, three tables", True)):
        config = CONFIGS[name]
        logits, other = (forward(config)(tiny(config)[1], source, TARGET) for source in (SOURCE, swapped))
        assert (abs(logits - other)[0].max() < 1e-5) == same, name


# --- tied tables


def projection(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def table_gradients(tying):
    """Gradients of the tables of one model, in which all tables have the same values."""
    model = build(dataclasses.replace(SHALLOW, tied_embeddings=tying).with_vocabulary(VOCABULARY))
    params = random_params(build(SHALLOW.with_vocabulary(VOCABULARY)))
    tables = {name: params["embedding"] for name in model.abstract_params if name.endswith("embedding")}

    @jit
    @jax.grad
    def gradient(tables):
        return (model.apply({**params, **tables}, SOURCE, TARGET) * projection((*TARGET.shape, VOCABULARY))).sum()

    return {name: np.asarray(g["table"]) for name, g in gradient(tables).items()}


def test_gradient_of_a_tied_table_is_the_sum_of_its_uses():
    apart = table_gradients("none")
    source, target, output = (apart[name] for name in ("embedding", "target_embedding", "output_embedding"))
    assert all(abs(g).max() > 0.1 for g in apart.values())
    both = table_gradients("target")
    assert set(both) == {"embedding", "target_embedding"}
    np.testing.assert_allclose(both["embedding"], source, atol=1e-4)
    np.testing.assert_allclose(both["target_embedding"], target + output, atol=1e-4)
    one = table_gradients("all")
    assert set(one) == {"embedding"}
    np.testing.assert_allclose(one["embedding"], source + target + output, atol=1e-4)


# --- masks


def test_causality_and_padding_by_gradient():
    """A position's logits have zero gradient for later target pieces and padding, and a nonzero one elsewhere."""
    model, params = tiny(dataclasses.replace(SHALLOW, decoder_layers=2, tied_embeddings="none"))
    source = np.array([[5, 7, 11, EOS, 0, 0]])
    target = np.array([[BOS, 9, 4, 7, 12]])  # all different, so that each table row is the input of one position

    @jit
    @jax.jacrev
    def jacobian(tables):
        changed = {**params, "embedding": {"table": tables[0]}, "target_embedding": {"table": tables[1]}}
        return (model.apply(changed, source, target)[0] * projection((5, VOCABULARY))).sum(axis=1)

    in_source, in_target = jacobian((params["embedding"]["table"], params["target_embedding"]["table"]))
    in_target = abs(np.asarray(in_target))[:, target[0]].max(axis=-1)  # (T, T)
    later = ~np.tri(5, dtype=bool)
    assert (in_target[later] == 0).all()
    assert (in_target[~later] > 1e-4).all()
    in_source = abs(np.asarray(in_source)).max(axis=-1)  # (T, V)
    assert (in_source[:, source[0, :4]] > 1e-4).all()
    assert (np.delete(in_source, source[0, :4], axis=1) == 0).all()  # includes padding


def test_more_padding_changes_nothing():
    _, params = tiny()
    narrow = np.asarray(forward()(params, SOURCE, TARGET))
    wide = np.asarray(forward()(params, np.pad(SOURCE, ((0, 0), (0, 5))), np.pad(TARGET, ((0, 0), (0, 3)))))
    for row, T in enumerate(lengths(TARGET)):
        np.testing.assert_allclose(wide[row, :T], narrow[row, :T], atol=5e-6)


def test_an_empty_row_has_finite_logits_and_gradients():
    """Empty rows fill up a batch that devices split. They must not change the other rows."""
    model, params = tiny(SHALLOW)
    empty_source, empty_target = (np.concatenate([x, np.zeros_like(x[:1])]) for x in (SOURCE, TARGET))

    @jit
    @jax.value_and_grad
    def gradient(params):
        return (model.apply(params, empty_source, empty_target) ** 2).sum()

    value, grads = gradient(params)
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))


def test_packed_sentences_equal_separate_ones():
    model, params = tiny()

    @jit
    def packed_forward(source, target, source_positions, target_positions, source_segments, target_segments):
        memory = model.bind(params).encode(source, positions_BS=source_positions, segments_BS=source_segments)
        return model.bind(params).decode(target, memory, positions_BT=target_positions, segments_BT=target_segments)[0]

    def pack(tokens, pairs):
        """Pack pairs of rows into one row each, padded to 9: pieces, positions, segments."""
        n = lengths(tokens)
        packed, positions, segments = np.zeros((3, len(pairs), 9), int)
        for i, (first, second) in enumerate(pairs):
            for row, at, number in ((first, 0, 1), (second, n[first], 2)):
                place = slice(at, at + n[row])
                packed[i, place], positions[i, place], segments[i, place] = tokens[row, : n[row]], range(n[row]), number
        return packed, positions, segments

    separate = np.asarray(forward()(params, SOURCE, TARGET))
    n, pairs = lengths(TARGET), [(0, 1), (1, 2)]
    (source, sp, ss), (target, tp, ts) = pack(SOURCE, pairs), pack(TARGET, pairs)
    for positions in ((sp, tp), (None, None)):  # None: counted in each segment
        packed = np.asarray(packed_forward(source, target, *positions, ss, ts))
        for i, (first, second) in enumerate(pairs):
            np.testing.assert_allclose(packed[i, : n[first]], separate[first, : n[first]], atol=5e-6)
            np.testing.assert_allclose(packed[i, n[first] :][: n[second]], separate[second, : n[second]], atol=5e-6)


def test_given_masks_replace_those_of_padding_and_the_past():
    model, params = tiny(SHALLOW)
    apply = jit(lambda masks: model.apply(params, SOURCE, TARGET, masks=masks))
    plain = np.asarray(forward(SHALLOW)(params, SOURCE, TARGET))
    past = np.tri(5, dtype=bool)[None]
    np.testing.assert_allclose(apply((SOURCE != 0, past)), plain, atol=1e-6)
    np.testing.assert_allclose(apply((SOURCE != 0, None)), plain, atol=1e-6)
    # Without the last piece of each source: as if it were not there.
    fewer = np.where(np.arange(6) < lengths(SOURCE)[:, None] - 1, SOURCE, 0)
    np.testing.assert_allclose(apply((fewer != 0, None)), forward(SHALLOW)(params, fewer, TARGET), atol=1e-5)
    # The whole target is seen: the last piece then changes the logits of the first position.
    everything = np.ones((1, 5, 5), bool)
    whole = jit(lambda target: model.apply(params, SOURCE, target, masks=(None, everything)))
    other = TARGET.copy()
    other[:, -1] = 10
    assert (abs(np.asarray(whole(TARGET) - whole(other)))[:, 0].max(axis=-1) > 1e-4).all()


def test_encoder_states_are_what_the_decoder_attends_to():
    model, params = tiny(SHALLOW)
    bound = model.bind(params)
    states_BSD = bound.encoder_states(SOURCE)
    assert states_BSD.shape == (*SOURCE.shape, 16)
    for kv, encoded in zip(bound.decoder.memory(states_BSD), bound.encode(SOURCE).kv, strict=True):
        np.testing.assert_array_equal(kv.k_BKHS, encoded.k_BKHS)


# --- dropout


@pytest.mark.parametrize("pre_norm", [False, True])
def test_dropout_stands_where_the_paper_puts_it(pre_norm, monkeypatch):
    """With a marker in place of dropout, the model equals the reference with this marker where the paper drops out."""
    calls = []

    def marker(x, rate, key):
        calls.append((rate, key))
        return x * 1.5 + 0.25

    for module in ("stack", "inputs", "attention", "layers"):
        monkeypatch.setattr(importlib.import_module(f"transformer.model.{module}"), "dropout", marker)
    rates = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
    config = dataclasses.replace(TINY, decoder_layers=1, pre_norm=pre_norm, **rates)
    model, params = tiny(config)
    source, target = SOURCE[:1], TARGET[:1]

    @jit
    def logits_and_keys(key):
        logits = model.apply(params, source, target, key=key)
        return logits, [jax.random.key_data(key) for _, key in calls]

    logits, keys = logits_and_keys(jax.random.key(0))
    expected, _ = Reference(config, params, *[lambda x: x * 1.5 + 0.25] * 3).logits(source[0], target[0])
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)
    # Two sums of embeddings, two sub-layers per encoder layer, three per decoder layer, the weights of one or two
    # attentions per layer, and one feed-forward network per layer: each with its own key.
    assert len(keys) == len({tuple(key.tolist()) for key in keys}) == 2 + 2 * 2 + 3 + 2 * 1 + 2 + 3
    assert [sum(rate == one for rate, _ in calls) for one in (0.3, 0.2, 0.1)] == [9, 4, 3]


def test_dropout_is_a_pure_function_of_the_key():
    _, params = tiny(SHALLOW)
    apply = forward(SHALLOW)
    plain = apply(params, SOURCE, TARGET)
    first, again, other = (apply(params, SOURCE, TARGET, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=-1).all() and (first != plain).any(axis=-1).all()


# --- types


def test_bfloat16_runs_close_to_float32():
    config = dataclasses.replace(SHALLOW, dtype="bfloat16")
    model, params = tiny(config)

    @jit
    def gradient(params):
        def loss(params):
            logits = model.apply(params, SOURCE, TARGET)
            return -jax.nn.log_softmax(logits)[..., 5].mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = gradient(params)
    for tree in (jax.eval_shape(model.init, jax.random.key(0)), grads):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    exact = np.asarray(forward(SHALLOW)(params, SOURCE, TARGET))
    distance = abs(np.asarray(logits) - exact)
    assert 1e-4 < distance.max() < 0.05 * abs(exact).max()
    memory = jax.eval_shape(lambda: model.bind(params).encode(SOURCE))
    cache = jax.eval_shape(lambda: model.bind(params).init_cache(3, 7))
    assert {x.dtype for x in jax.tree.leaves((memory.kv, cache.kv))} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_remat_computes_the_same_with_less_memory(name):
    """With and without shared keys and values; with dropout, whose masks must be the same when recomputed."""
    config = dataclasses.replace(CONFIGS[name], kv_sharing=2, dropout=0.2, encoder_layers=2, decoder_layers=2)
    model, params = tiny(config)

    source, target = np.tile(SOURCE, (20, 1)), np.tile(TARGET, (20, 1))

    def loss(params, remat):
        logits = model.apply(params, source, target, key=jax.random.key(3), run=Run(remat))
        return jnp.mean(jnp.sin(logits))

    found, kept = [], []
    for remat in (False, True):
        step = jit(jax.value_and_grad(loss), static_argnums=1)
        found.append((step(params, remat), str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, remat))))
        _, backward = jax.vjp(lambda params, remat=remat: loss(params, remat), params)
        kept.append(sum(x.size for x in jax.tree.leaves(backward) if hasattr(x, "size")))
    ((value, grads), plain), ((again, others), second) = found
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, others)
    assert kept[1] < 0.6 * kept[0]  # what the forward pass stores for the backward pass
    assert second.count("dot_general") > plain.count("dot_general") * 1.2
