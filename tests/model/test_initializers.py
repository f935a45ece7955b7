"""Distributions of initial parameters, and their effect on the positions of a sentence in a deep post-norm model."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

from transformer.config import ModelConfig
from transformer.model import build
from transformer.model.inputs import sinusoids

SMALL = ModelConfig(encoder_layers=2, decoder_layers=3, d_model=32, d_ff=48, heads=4, kv_heads=2, d_k=6, d_v=10)
V = 500


def flat(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in keys): np.asarray(leaf) for keys, leaf in leaves}


# Variance of each matrix, by hand. Query (32, 4 x 6), key (32, 2 x 6), value (32, 2 x 10), output (4 x 10, 32),
# w1 (32, 48), w2 (48, 32); 4 sub-layers in the encoder, 9 in the decoder.
VARIANCES = {
    "scaled": {"query": 1 / 32, "key": 1 / 32, "value": 1 / 32, "w1": 1 / 32, "output": 1 / 40, "w2": 1 / 48},
    "glorot": {"query": 2 / 56, "key": 2 / 44, "value": 2 / 52, "w1": 2 / 80, "output": 2 / 72, "w2": 2 / 80},
    "fairseq": {"query": 1 / 56, "key": 1 / 44, "value": 1 / 52, "w1": 1 / 96, "output": 2 / 72, "w2": 1 / 144},
}


@pytest.mark.slow
@pytest.mark.parametrize("initializer", ["gpt2", "bert"])
def test_as_gpt2_and_bert_start(initializer: str) -> None:
    """Normal, with deviation 0.02. GPT-2 divides the last matrix of each sub-layer by the square root of their number;
    BERT truncates at two deviations."""
    config = dataclasses.replace(SMALL, initializer=initializer, positions="learned", attention_bias=True)
    model = build(config.with_vocabulary(V))
    params = flat(jit(model.init)(jax.random.key(0)))
    for path, values in params.items():
        stack, name = path.split("/")[0], path.split("/")[-1]
        if name == "scale" or name.endswith("bias") or name in ("b1", "b2"):
            assert (values == (name == "scale")).all() and model.starts[path] == str(int(name == "scale")), path
            continue
        deviation = 0.02
        if initializer == "gpt2" and name in ("output", "w2"):
            deviation /= {"encoder": 2, "decoder": 3}[stack]
        cut = initializer == "bert"
        assert model.starts[path] == f"{'truncated ' * cut}normal, {deviation:.4f}", path
        error = 5 / math.sqrt(2 * values.size)
        assert values.std() == pytest.approx(deviation * (0.8796 if cut else 1), rel=error), path
        assert (abs(values).max() <= 2 * deviation) == cut, path


@pytest.mark.parametrize(
    ("initializer", "start"),
    [
        ("bert", "truncated normal, 0.0200"),
        ("gpt2", "normal, 0.0200"),
        ("scaled", f"uniform, +-{math.sqrt(3 / 32):.4f}"),
        ("glorot", f"uniform, +-{math.sqrt(3 * 2 / 64):.4f}"),
        ("fairseq", f"uniform, +-{math.sqrt(3 / (3 * 32)):.4f}"),
    ],
)
def test_how_the_heads_of_an_encoder_start(initializer: str, start: str) -> None:
    """As w1 does; token types as positions do; biases are 0."""
    config = dataclasses.replace(SMALL, decoder_layers=0, token_types=2, head="pretraining", initializer=initializer)
    model = build(config.with_vocabulary(V))
    params = flat(jit(model.init)(jax.random.key(0)))
    assert model.starts["pooler/w"] == model.starts["masked_head/w"] == start
    assert model.starts["token_types"] == ("truncated " if initializer == "bert" else "") + "normal, 0.0200"
    assert 0.8 * 0.02 < params["token_types"].std() < 1.2 * 0.02
    assert not params["pooler/bias"].any() and not params["next_sentence_head/bias"].any()


@pytest.mark.parametrize("initializer", VARIANCES)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_parameter_starts_as_its_initializer_says(initializer: str, pre_norm: bool) -> None:
    config = dataclasses.replace(SMALL, initializer=initializer, pre_norm=pre_norm, positions="learned")
    model = build(config.with_vocabulary(V))
    params = flat(jit(model.init)(jax.random.key(0)))
    assert params.keys() == model.starts.keys()
    for path, values in params.items():
        stack, name = path.split("/")[0], path.split("/")[-1]
        if name in VARIANCES[initializer]:
            variance = VARIANCES[initializer][name]
            if initializer == "scaled" and name in ("output", "w2"):
                variance /= {"encoder": 4, "decoder": 9}[stack]
            limit = math.sqrt(3 * variance)
            assert model.starts[path] == f"uniform, +-{limit:.4f}", path
            assert abs(values).max() == pytest.approx(limit, rel=0.03) and abs(values).max() <= limit, path
            assert values.std() == pytest.approx(math.sqrt(variance), rel=0.1), path
        elif name.endswith("_positions") and initializer == "scaled":
            assert model.starts[path] == "sinusoids, times 1"
            np.testing.assert_array_equal(values, sinusoids(jnp.arange(len(values)), 32))
        elif name == "table" or name.endswith("_positions"):
            deviation = 32**-0.5 if name == "table" else 0.02
            assert model.starts[path] == f"normal, {deviation:.4f}"
            assert values.std() == pytest.approx(deviation, rel=0.02) and abs(values.mean()) < deviation / 20
        else:
            expected = 1 if name == "scale" else 0
            assert model.starts[path] == str(expected) and (values == expected).all()


@pytest.mark.parametrize("width", [32, 33])
def test_positions_start_in_proportion_to_the_embeddings(width: int) -> None:
    """Also of an odd width, which sinusoids as such can't have."""
    config = ModelConfig(
        encoder_layers=1, decoder_layers=0, d_model=width, d_ff=48, heads=1, positions="learned", max_positions=40
    )
    for scaled, scale in ((True, 1), (False, width**-0.5)):
        model = build(dataclasses.replace(config, embedding_scale=scaled).with_vocabulary(V))
        values = flat(jit(model.init)(jax.random.key(0)))["positions"]
        assert values.shape == (40, width) and model.starts["positions"] == f"sinusoids, times {scale:.4g}"
        np.testing.assert_allclose(values[7, :2], np.array([np.sin(7), np.cos(7)]) * scale, rtol=1e-5)


def likeness(config: ModelConfig) -> float:
    """The mean cosine between an untrained encoder's outputs at two positions of a sentence."""
    model = build(config.with_vocabulary(V))

    def outputs(key):
        memory = model.bind(model.init(key)).encode(jax.random.randint(key, (8, 16), 4, V))
        # The keys of cross-attention are these outputs times one matrix, which mostly keeps the angles.
        return memory.kv[0].k_BKHS

    k_BKHS = jit(outputs)(jax.random.key(0))
    k_BSX = jnp.moveaxis(k_BKHS, -1, 1).reshape(8, 16, -1)
    unit_BSX = k_BSX / jnp.linalg.norm(k_BSX, axis=-1, keepdims=True)
    cosines_BST = np.asarray(unit_BSX @ unit_BSX.swapaxes(1, 2))
    return float((cosines_BST.sum() / 8 - 16) / (16 * 15))


@pytest.mark.slow
def test_positions_stay_apart_behind_a_deep_encoder() -> None:
    """With 'scaled', depth has no effect; with 'glorot', all positions look alike in a deep encoder."""
    config = ModelConfig(encoder_layers=8, decoder_layers=1, d_model=64, d_ff=128, heads=4)
    shallow = dataclasses.replace(config, encoder_layers=2)
    scaled, of_two = likeness(config), likeness(shallow)
    assert scaled < 0.5 and scaled == pytest.approx(of_two, abs=0.1)
    assert likeness(dataclasses.replace(config, initializer="glorot")) > 0.95
