from types import SimpleNamespace

import jax
import pytest

from transformer.config import BASE, BIG, AttentionConfig, ModelConfig
from transformer.model import build
from transformer.training.flops import peak, update_flops
from transformer.training.progress import Interval


def test_by_hand():
    """One layer in encoder and decoder, three rows of 5 and 7 positions, each product counted separately."""
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=8, d_ff=20, heads=2, d_k=3, d_v=5)
    D, F, N, K, V, source, target, vocabulary = 8, 20, 2, 3, 5, 5, 7, 11

    def attention(queries, keys):
        project = queries * D * N * K + keys * D * N * K + keys * D * N * V + queries * N * V * D
        return 2 * (project + queries * keys * N * K + queries * keys * N * V)

    encoder = attention(source, source) + 2 * source * 2 * D * F
    decoder = attention(target, target) + attention(target, source) + 2 * target * 2 * D * F
    expected = 3 * 3 * (encoder + decoder + 2 * target * D * vocabulary)
    assert update_flops(config.with_vocabulary(vocabulary), 3, source, target) == expected


@pytest.mark.parametrize("config", [BASE, BIG])
def test_near_six_times_parameters_times_tokens(config):
    """The rule of thumb. Source positions pass the encoder and the keys and values of the cross-attention, target
    positions the rest."""
    params = build(config.with_vocabulary(37_000)).abstract_params
    size = {side: sum(x.size for x in jax.tree.leaves(params[side])) for side in ("encoder", "decoder")}
    table = params["embedding"]["table"].size
    found = update_flops(config.with_vocabulary(37_000), 1_000, 32, 32)
    assert found == pytest.approx(6 * 32_000 * (size["encoder"] + size["decoder"] + table), rel=0.03)


def test_shared_keys_and_values_cost_less():
    whole = update_flops(BASE.with_vocabulary(8_000), 8, 32, 32)
    one = ModelConfig(decoder_attention=AttentionConfig(kv_heads=1, kv_sharing=2))
    saved = 3 * 8 * 32 * 2 * 512 * 128 * (6 * 8 - 3)
    assert whole - update_flops(one.with_vocabulary(8_000), 8, 32, 32) == saved


def test_the_log_has_the_share_of_the_peak_rate_that_the_arithmetic_takes(monkeypatch):
    clock = iter([0.0, 100.0, 105.0, 200.0, 201.0, 202.0])
    monkeypatch.setattr("transformer.training.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    interval = Interval({})
    values = {"loss": 2.0, "nll": 8.0, "weight": 4.0, "gradient_norm": 1.0, "tokens": 40.0}
    interval.add(values, 3e12)
    interval.leave_out(95.0)  # spent on compiling
    interval.add(values, 1e12)
    entry = interval.close(2e12)
    assert entry["mfu"] == pytest.approx(4e12 / 5 / 2e12)
    assert entry["tokens_per_second"] == pytest.approx(80 / 5)
    assert "mfu" not in Interval({"updates": 1.0}).close(0.0)


def test_known_chips():
    kinds = ("TPU v5 lite", "TPU v6e", "NVIDIA H200", "NVIDIA H100 PCIe", "cpu")
    rates = [peak(SimpleNamespace(device_kind=kind)) for kind in kinds]
    assert rates == [197e12, 918e12, 989e12, 756e12, None]
