"""The encoder alone and BERT's heads equal the float64 reference; masks, packing, token types and dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit
from reference import ACTIVATIONS, Reference
from tiny import TINY, VOCABULARY, random_params

from transformer.config import BERT, AttentionConfig, ModelConfig, UserError
from transformer.model import Encoder, build
from transformer.training.flops import update_flops

ALONE = dataclasses.replace(TINY, decoder_layers=0)
SMALL = dataclasses.replace(
    BERT, encoder_layers=2, d_model=16, d_ff=24, heads=4, max_positions=12, dropout=0.0, attention_dropout=0.0
)
CONFIGS = {
    "the paper's encoder": ALONE,
    "BERT": SMALL,
    "masked, tanh-gelu, untied": dataclasses.replace(
        SMALL, head="masked", activation="gelu_tanh", tied_embeddings="none", norm_eps=0.5, token_types=0
    ),
    "sequence, pre-norm, without output bias": dataclasses.replace(
        SMALL, head="sequence", labels=3, pre_norm=True, output_bias=False, token_types=3
    ),
    "token, rotary, grouped-query": dataclasses.replace(
        SMALL, head="token", labels=5, positions="rotary", kv_heads=2, norm_bias=False
    ),
    "none, cross-layer, window": dataclasses.replace(
        SMALL, head="none", encoder_layers=4, encoder_attention=AttentionConfig(kv_sharing=2, window=2)
    ),
}
TEXT = np.array([[0, 9, 4, 7, 12, 3, 0, 5], [2, 6, 6, 8, 10, 11, 4, 1], [1, 3, 0, 0, 9, 9, 7, 7]])
TYPES = np.array([[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8, [1, 0, 1, 0, 1, 0, 1, 0]])
LENGTHS = np.array([8, 5, 3])
MASK = np.arange(8) < LENGTHS[:, None]


@functools.cache
def model(name):
    built = build(CONFIGS[name].with_vocabulary(VOCABULARY))
    return built, random_params(built)


def types_of(config, types=TYPES):
    return {"types_BT": types} if config.token_types else {}


def reference(config, params, tokens, types):
    """The outputs of one text without padding, as `Encoder.__call__` gives them, in float64."""
    of = Reference(config, params)
    p = of.p

    def dense(q, x):
        return x @ q["w"] + q["bias"]

    rows = p["token_types"][types] if config.token_types else 0
    x = of.inputs(p["embedding"]["table"], p.get("positions"), tokens, p.get("input_norm"), rows)
    x = of.alone("encoder", x)
    pooled = np.tanh(dense(p["pooler"], x[0])) if "pooler" in p else None
    if config.head in ("sequence", "token"):
        return (dense(p["label_head"], of.drop(pooled if config.head == "sequence" else x)),)
    if config.head == "none":
        return x, pooled
    hidden = of.norm(p["masked_norm"], ACTIVATIONS[config.activation](dense(p["masked_head"], x)))
    logits = hidden @ p.get("output_embedding", p["embedding"])["table"].T + p.get("output_bias", 0)
    return (logits, dense(p["next_sentence_head"], pooled)) if config.head == "pretraining" else (logits,)


def outputs(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_equal_the_reference(name):
    """Rows of three lengths: what the mask hides has no effect, whatever its id."""
    built, params = model(name)
    config = built.config
    found = outputs(jit(built.apply)(params, TEXT, mask_BT=MASK, **types_of(config)))
    for row, length in enumerate(LENGTHS):
        expected = reference(config, params, TEXT[row, :length], TYPES[row, :length])
        assert len(expected) == len(found)
        for y, of_row in zip(expected, found, strict=True):
            whole_text = np.ndim(y) == 1
            np.testing.assert_allclose(of_row[row] if whole_text else of_row[row, :length], y, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_the_reference(name):
    """The directional derivative of one number, in a random direction of all parameters, by differences in float64."""
    built, params = model(name)
    config, rng = built.config, np.random.default_rng(0)
    plain = reference(config, params, TEXT[0], TYPES[0])
    projections = [rng.normal(size=y.shape) for y in plain]

    def total(outputs):
        return sum((y * projection).sum() for y, projection in zip(outputs, projections, strict=True))

    def loss(params):
        found = outputs(built.apply(params, TEXT[:1], **types_of(config, TYPES[:1])))
        return total([y[0] for y in found])

    direction, found = random_params(built, seed=1), jit(jax.grad(loss))(params)

    def value(step):
        moved = jax.tree.map(
            lambda p, d: np.asarray(p, np.float64) + step * np.asarray(d, np.float64), params, direction
        )
        return total(reference(config, moved, TEXT[0], TYPES[0]))

    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        assert np.abs(gradient).max() > 1e-3 or path[-1].key == "key_bias", path
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (np.asarray(g, np.float64) * d).sum(), found, direction)))
    assert along == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-4)


def test_chosen_positions_give_the_logits_of_all():
    """What a loss takes: the head's states at the masked positions, the table and the bias."""
    built, params = model("BERT")
    logits, _ = jit(built.apply)(params, TEXT, types_BT=TYPES)
    places = np.array([[1, 7], [0, 0], [3, 2]])

    @jit
    def chosen(params):
        module = built.bind(params)
        x_BXD = jnp.take_along_axis(module.states(TEXT, types_BT=TYPES), places[..., None], axis=1)
        hidden = module.masked_hidden(x_BXD) @ module.output.table[...].T + module.output_bias[...]
        return module.masked_logits(x_BXD), hidden

    for found in chosen(params):
        np.testing.assert_allclose(found, np.take_along_axis(np.asarray(logits), places[..., None], 1), atol=2e-5)


@pytest.mark.parametrize("name", ["masked, tanh-gelu, untied", "token, rotary, grouped-query"])
def test_packed_texts_do_not_see_each_other(name):
    built, params = model(name)
    numbers = np.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 2, 2, 2, 3, 3, 0, 0], [1] * 8])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4], [0, 0, 1, 2, 0, 1, 0, 1], range(8)])
    given = {"positions_BT": positions, "segments_BT": numbers, **types_of(built.config)}
    packed = jit(built.apply)(params, TEXT, **given)
    for row, of_row, types, found in zip(TEXT, numbers, TYPES, packed, strict=True):
        for number in range(1, of_row.max() + 1):
            places = np.flatnonzero(of_row == number)
            (alone,) = reference(built.config, params, row[places], types[places])
            np.testing.assert_allclose(found[places], alone, rtol=2e-4, atol=2e-5)


def test_without_types_all_are_of_type_0_and_both_directions_are_seen():
    built, params = model("BERT")
    apply = jit(built.apply)
    plain = outputs(apply(params, TEXT))
    for x, y in zip(plain, outputs(apply(params, TEXT, types_BT=np.zeros_like(TEXT))), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    changed = TEXT.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    assert (apply(params, changed)[0][:, 0] != plain[0][:, 0]).any(axis=-1).all()


def test_dropout_of_the_head_alone():
    """With a key, each output of the head's input is 0 or 1 / (1 - rate) as large; without one, nothing changes."""
    config = dataclasses.replace(SMALL, head="token", labels=16, dropout=0.5).with_vocabulary(VOCABULARY)
    built = build(config)
    params = random_params(built)
    params["label_head"] = {"w": jnp.eye(16), "bias": jnp.zeros(16)}
    x_BTD = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)
    module = built.bind(params)
    np.testing.assert_allclose(module.label_logits(x_BTD), x_BTD, atol=1e-6)
    dropped = np.asarray(module.label_logits(x_BTD, key=jax.random.key(0)))
    with pytest.raises(UserError, match=r"^key "):
        module.label_logits(x_BTD, key=5)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * x_BTD[kept], atol=1e-5)
    assert 0.4 < kept.mean() < 0.6


def test_sixteen_bits_are_close_and_heads_give_float32():
    for name in ("the paper's encoder", "BERT"):
        built, params = model(name)
        half = build(dataclasses.replace(built.config, dtype="bfloat16"))
        pairs = zip(jit(half.apply)(params, TEXT), jit(built.apply)(params, TEXT), strict=True)
        for x, y in pairs:
            assert x.dtype == (jnp.bfloat16 if built.config.head == "none" else jnp.float32)
            assert np.abs(np.asarray(x, np.float32) - y).mean() < 0.1 * np.abs(y).mean(), name


def test_wrong_arguments_are_refused_in_one_line():
    built, params = model("BERT")
    bound = built.bind(params)
    assert isinstance(bound, Encoder)
    masked, of_masked = model("masked, tanh-gelu, untied")
    x_BTD = jnp.zeros((3, 8, 16))
    for error, call in (
        (r"^tokens_BT\[0, 0\] = 99: ids must be 0 or more and below vocab_size, 13$", lambda: bound(TEXT + 99)),
        (r"^types_BT\[0, 0\] = 2: ids .* below token_types, 2$", lambda: bound(TEXT, types_BT=TYPES + 2)),
        (r"^types_BT has the shape \(3, 7\)", lambda: bound(TEXT, types_BT=TYPES[:, 1:])),
        (r"^mask_BT is of type int64: give an array of booleans", lambda: bound(TEXT, mask_BT=TYPES)),
        (r"^tokens_BT\[0, 12\] is at position 12, .* 12 learned positions", lambda: bound(np.tile(TEXT, 2))),
        (r"^types_BT: this model has no token types", lambda: masked.apply(of_masked, TEXT, types_BT=TYPES)),
        (r"^model\.head = 'masked': such a model has no pooler", lambda: masked.bind(of_masked).pooled(x_BTD)),
        (r"^model\.head = 'pretraining': .* no head for labels", lambda: bound.label_logits(x_BTD)),
        (r"^x_BXD has the shape \(3, 8, 15\)", lambda: bound.masked_hidden(x_BTD[..., 1:])),
        (r"^x_BTD has the shape \(8, 16\)", lambda: bound.pooled(x_BTD[0])),
    ):
        with pytest.raises(UserError, match=error):
            call()


@pytest.mark.parametrize("shape", [(0, 8, 16), (3, 0, 16), (0, 0, 16)])
def test_states_without_rows_or_positions_are_refused(shape):
    built, params = model("BERT")
    bound = built.bind(params)
    for call in (bound.pooled, bound.masked_hidden, bound.masked_logits, bound.next_sentence_logits):
        with pytest.raises(UserError, match=r"^x_B[XT]D has the shape \(.*\): give at least one row and one position$"):
            call(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"head": "token"}, r"labels = None: give the number of outputs of the head 'token'"),
        ({"head": "sequence", "labels": 0}, r"labels = 0: must be at least 1"),
        ({"head": "masked", "labels": 3}, r"labels = 3: must be None where model.head is 'masked'"),
        ({"head": "classes"}, r"head = 'classes': must be one of none, masked, pretraining, sequence, token"),
        (
            {"decoder_layers": 1, "token_types": 0},
            r"head = 'pretraining': must be 'none' or 'token' where the model has a decoder",
        ),
        ({"decoder_layers": 1, "head": "none"}, r"token_types = 2: must be 0 where the model has a decoder"),
        ({"encoder_layers": 0}, r"decoder_layers = 0: must be at least 1 where model.encoder_layers is 0"),
    ],
)
def test_wrong_models_are_refused_in_one_line(fields, error):
    with pytest.raises(UserError, match=rf"^model\.{error}"):
        build(dataclasses.replace(SMALL, **fields).with_vocabulary(VOCABULARY))


def test_the_parameters_of_bert_and_the_arithmetic_of_an_update():
    """Devlin et al. 2019: 110 million. By hand: embeddings, 12 blocks, pooler, both heads."""
    D, F, L, V, P = 768, 3_072, 12, 30_522, 512
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    expected = (V + P + 2) * D + 2 * D + L * block + D * D + D
    assert expected == 109_482_240

    def count(config: ModelConfig) -> int:
        return sum(x.size for x in jax.tree.leaves(build(config.with_vocabulary(V)).abstract_params))

    assert count(dataclasses.replace(BERT, head="none")) == expected
    assert count(BERT) == expected + D * D + D + 2 * D + V + 2 * D + 2 == 110_106_428
    B, T, X = 3, 128, 20
    blocks = L * (T * (8 * D**2 + 4 * D * F) + 4 * T**2 * D)
    config = BERT.with_vocabulary(V)
    assert update_flops(config, B, T, X) == 3 * B * (blocks + X * 2 * D * (D + V) + 2 * D * D + 4 * D)
    tagging = dataclasses.replace(config, head="token", labels=7)
    assert update_flops(tagging, B, T, T) == 3 * B * (blocks + T * 2 * D * 7)
    classes = dataclasses.replace(config, head="sequence", labels=7)
    assert update_flops(classes, B, T, 1) == 3 * B * (blocks + 2 * D * (D + 7))
