"""All attention weights of one pass equal those of the float64 reference, for every kind of model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_decoder
import test_encoder
import test_encoder_decoder
from quick import jit
from reference import Reference
from tiny import SOURCE, TARGET, TINY, lengths, tiny

from transformer.model import Run, attention

BOTH = test_encoder_decoder.CONFIGS | test_encoder_decoder.OPTIONS | test_encoder_decoder.SHARING


def of(model):
    """`attention` of a model, compiled."""
    return jit(lambda params, *given, **options: model.bind(params).attention(*given, **options))


def check(found, expected, queries, keys):
    """Compare weights (L, N, T, S) of one row with a list of (N, t, s). Rows sum to 1; padding is exactly 0."""
    found, expected = np.asarray(found), np.stack(expected)
    np.testing.assert_allclose(found[:, :, :queries, :keys], expected, atol=2e-6)
    np.testing.assert_allclose(found[:, :, :queries].sum(-1), 1, atol=1e-6)
    assert not found[:, :, queries:].any() and not found[:, :, :, keys:].any()
    assert not found[:, :, :queries, :keys][expected == 0].any()


@pytest.mark.parametrize("name", BOTH)
def test_an_encoder_decoder(name):
    model, params = tiny(BOTH[name])
    logits, weights = of(model)(params, SOURCE, TARGET)
    np.testing.assert_allclose(logits, jit(model.apply)(params, SOURCE, TARGET), atol=1e-6)
    assert weights.keys() == {"encoder", "decoder", "cross"}
    for row, (S, T) in enumerate(zip(lengths(SOURCE), lengths(TARGET), strict=True)):
        reference = Reference(BOTH[name], params)
        reference.logits(SOURCE[row, :S], TARGET[row, :T])
        check(weights["encoder"][row], reference.weights["encoder"], S, S)
        check(weights["decoder"][row], reference.weights["decoder"], T, T)
        check(weights["cross"][row], reference.weights["cross"], T, S)
        later = ~np.tri(T, dtype=bool)
        assert later.any() and not np.asarray(weights["decoder"][row, :, :, :T, :T])[:, :, later].any()


@pytest.mark.parametrize("name", test_decoder.CONFIGS)
def test_a_decoder_alone(name):
    model, params = test_decoder.model(name)
    logits, weights = of(model)(params, test_decoder.TEXT)
    np.testing.assert_allclose(logits, test_decoder.logits(name), atol=1e-6)
    for row, text in enumerate(test_decoder.TEXT):
        reference = Reference(model.config, params)
        p = reference.p
        reference.alone(
            "decoder", reference.inputs(p["embedding"]["table"], p.get("positions"), text, p.get("input_norm"))
        )
        check(weights["decoder"][row], reference.weights["decoder"], len(text), len(text))
    assert not np.asarray(weights["decoder"])[:, :, :, ~np.tri(8, dtype=bool)].any()


@pytest.mark.parametrize("name", test_encoder.CONFIGS)
def test_an_encoder_alone(name):
    """With two segments where the model has token types, and padding."""
    model, params = test_encoder.model(name)
    given = {"mask_BT": test_encoder.MASK, **test_encoder.types_of(model.config)}
    found, weights = of(model)(params, test_encoder.TEXT, **given)
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(jit(model.apply)(params, test_encoder.TEXT, **given)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for row, n in enumerate(test_encoder.LENGTHS):
        reference = Reference(model.config, params)
        p, types = reference.p, test_encoder.TYPES[row, :n]
        rows = p["token_types"][types] if model.config.token_types else 0
        text = test_encoder.TEXT[row, :n]
        x = reference.inputs(p["embedding"]["table"], p.get("positions"), text, p.get("input_norm"), rows)
        reference.alone("encoder", x)
        check(weights["encoder"][row], reference.weights["encoder"], n, n)
    if not model.config.token_types:
        return
    swapped = of(model)(params, test_encoder.TEXT, **given | {"types_BT": 1 - np.minimum(test_encoder.TYPES, 1)})
    assert abs(swapped[1]["encoder"] - weights["encoder"]).max() > 1e-3


def test_packed_rows_and_rematerialisation():
    """Two sentences in one row attend to themselves alone; blocks that are recomputed give the same weights."""
    model, params = tiny(TINY)
    places = np.array([[0, 1, 2, 0, 1, 2]]), np.array([[0, 1, 0, 1, 2]])
    segments = np.array([[1, 1, 1, 2, 2, 2]]), np.array([[1, 1, 2, 2, 2]])
    given = {"positions": places, "segments": segments}
    weights = of(model)(params, SOURCE[:1], TARGET[:1], **given)[1]
    allowed = segments[1][0][:, None] == segments[0][0]
    assert not np.asarray(weights["cross"])[..., ~allowed].any()
    assert np.asarray(weights["cross"])[..., allowed].all()
    again = jit(lambda params: model.bind(params).attention(SOURCE[:1], TARGET[:1], **given, run=Run(remat=True)))
    for kind, expected in weights.items():
        np.testing.assert_allclose(again(params)[1][kind], expected, atol=1e-6)


def test_weights_switch_a_fused_kernel_off_and_nothing_else_does(monkeypatch):
    """A pass that wants no weights has none of them, and uses the kernel wherever it can."""
    model, params = tiny(dataclasses.replace(TINY, attention_kernel="cudnn", dtype="bfloat16"))
    used = []

    def fused(q_BTNH, kv, mask_BTS):
        used.append(q_BTNH.shape)
        return attention.attend(q_BTNH, kv, mask_BTS)[0]

    monkeypatch.setattr(attention, "fused", fused)
    monkeypatch.setattr(attention, "fusible", lambda q_BTNH, kv: True)
    _, weights = jax.eval_shape(lambda params: model.bind(params).attention(SOURCE, TARGET), params)
    assert not used and {name: array.dtype for name, array in weights.items()} == dict.fromkeys(
        ("encoder", "decoder", "cross"), jnp.float32
    )
    jax.eval_shape(lambda params: model.bind(params)(SOURCE, TARGET), params)
    assert len(used) == 6  # 2 layers: encoder, decoder, cross
    used.clear()
    memory = model.bind(params).encode(SOURCE)
    used.clear()
    model.bind(params).decode(TARGET, memory, want_weights=True)
    assert len(used) == 2  # cross-attention alone is not fused


def test_masks_that_are_given_are_used():
    model, params = tiny(TINY)
    mask_BS = SOURCE != 4
    weights = of(model)(params, SOURCE, TARGET, masks=(mask_BS, None))[1]
    assert not np.asarray(weights["cross"])[0][..., 3].any() and not np.asarray(weights["encoder"])[0, :, :, 3].any()
    np.testing.assert_allclose(np.asarray(weights["cross"])[0].sum(-1), 1, atol=1e-6)
