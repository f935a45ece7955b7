from types import SimpleNamespace

import jax
import pytest

from transformer.config import BASE, BIG, AttentionConfig, ModelConfig
from transformer.model import encoder_decoder
from transformer.training.flops import peak, update_flops


def test_by_hand():
    """One layer a side, three rows of 5 and 7 positions, each product counted by itself."""
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=8, d_ff=20, heads=2, d_k=3, d_v=5)
    D, F, N, K, V, source, target, vocabulary = 8, 20, 2, 3, 5, 5, 7, 11

    def attention(queries, keys):
        project = queries * D * N * K + keys * D * N * K + keys * D * N * V + queries * N * V * D
        return 2 * (project + queries * keys * N * K + queries * keys * N * V)

    encoder = attention(source, source) + 2 * source * 2 * D * F
    decoder = attention(target, target) + attention(target, source) + 2 * target * 2 * D * F
    expected = 3 * 3 * (encoder + decoder + 2 * target * D * vocabulary)
    assert update_flops(config, vocabulary, 3, source, target) == expected


@pytest.mark.parametrize("config", [BASE, BIG])
def test_near_six_times_parameters_times_tokens(config):
    """The rule of thumb: source positions see the encoder and the decoder's keys and values, target ones the rest."""
    params = encoder_decoder(config, 37_000).abstract_params
    size = {side: sum(x.size for x in jax.tree.leaves(params[side])) for side in ("encoder", "decoder")}
    table = params["embedding"]["table"].size
    found = update_flops(config, 37_000, 1_000, 32, 32)
    assert found == pytest.approx(6 * 32_000 * (size["encoder"] + size["decoder"] + table), rel=0.03)


def test_shared_keys_and_values_cost_less():
    whole = update_flops(BASE, 8_000, 8, 32, 32)
    one = ModelConfig(decoder_attention=AttentionConfig(kv_heads=1, kv_sharing=2))
    saved = 3 * 8 * 32 * 2 * 512 * 128 * (6 * 8 - 3)
    assert whole - update_flops(one, 8_000, 8, 32, 32) == saved


def test_known_chips():
    rates = {kind: peak(SimpleNamespace(device_kind=kind)) for kind in ("TPU v5 lite", "TPU v6e", "NVIDIA H200", "cpu")}
    assert rates == {"TPU v5 lite": 197e12, "TPU v6e": 918e12, "NVIDIA H200": 989e12, "cpu": None}
