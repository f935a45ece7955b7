"""Arithmetic of an update: the products of matrices that the model is made of, and chips' peak rates.

Model FLOPs as Chowdhery et al. 2022 (PaLM, appendix B) count them: what rematerialisation computes again does not
count; padding does, and so does attention to masked positions, also those of other sentences in a packed row. A
product of (m, k) and (k, n) is 2 m k n.
"""

from __future__ import annotations

import re

import jax

from transformer.config import ModelConfig

# bfloat16 FLOP/s of one device, by the name that JAX gives it: the makers' data sheets, without sparsity.
PEAKS = {
    r"TPU v4": 275e12,
    r"TPU v5( lite|e)": 197e12,
    r"TPU v5p?": 459e12,
    r"TPU v6( lite|e)": 918e12,
    r".*A100.*": 312e12,
    r".*H100.*PCIe.*": 756e12,
    r".*H100 NVL.*": 835e12,
    r".*H(100|200).*": 989e12,
}


def update_flops(config: ModelConfig, rows: int, encoded: int, decoded: int) -> float:
    """FLOPs of one update on `rows` rows of `encoded` positions in the encoder and `decoded` in the decoder.

    That is three times the forward pass.
    """
    c = config
    queries, heads = 2 * c.d_model * c.heads * c.key_size, c.heads * (c.key_size + c.value_size)

    def attention(kind: str, layers: int, positions: int, keys: int) -> float:
        options = c.attention(kind)
        project = positions * (queries + 2 * c.heads * c.value_size * c.d_model)
        made = -(-layers // options.kv_sharing) * keys * 2 * c.d_model * options.kv_heads * (c.key_size + c.value_size)
        return layers * (project + positions * keys * 2 * heads) + made

    feed_forward = 4 * c.d_model * c.d_ff
    encoder = attention("encoder", c.encoder_layers, encoded, encoded) + c.encoder_layers * encoded * feed_forward
    decoder = attention("decoder", c.decoder_layers, decoded, decoded) + c.decoder_layers * decoded * feed_forward
    cross = attention("cross", c.decoder_layers, decoded, encoded)
    return 3.0 * rows * (encoder + decoder + cross + decoded * 2 * c.d_model * c.vocab_size)


def peak(device: jax.Device) -> float | None:
    """The device's bfloat16 FLOP/s, if it is known."""
    return next((rate for name, rate in PEAKS.items() if re.fullmatch(name, device.device_kind)), None)
