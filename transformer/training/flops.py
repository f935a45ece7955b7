"""Model FLOPs of an update, and the peak rates of devices.

The count follows Chowdhery et al. 2022 (PaLM, appendix B). It includes matrix products only: 2 m k n FLOPs for (m, k)
times (k, n). It includes padding, and attention to masked positions, such as those of other sentences in a packed row.
It does not include what rematerialisation computes again.
"""

from __future__ import annotations

import re

import jax

from transformer.config import LABEL_HEADS, ModelConfig

# Device name in JAX -> dense bfloat16 FLOP/s of one device, from the data sheets of the makers.
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
    """FLOPs of one update on `rows` rows with `encoded` positions in the encoder and `decoded` in the decoder.

    `encoded` is 0 for a decoder alone, which has no cross-attention. For an encoder alone, `decoded` is the number of
    positions that its head computes outputs of. The backward pass counts as two forward passes.
    """
    c = config
    queries, heads = 2 * c.d_model * c.heads * c.key_size, c.heads * (c.key_size + c.value_size)

    def attention(kind: str, layers: int, positions: int, keys: int) -> float:
        options = c.attention(kind)
        project = positions * (queries + 2 * c.heads * c.value_size * c.d_model)
        kv = -(-layers // options.kv_sharing) * keys * 2 * c.d_model * options.kv_heads * (c.key_size + c.value_size)
        return layers * (project + positions * keys * 2 * heads) + kv

    feed_forward = 4 * c.d_model * c.d_ff
    encoder = attention("encoder", c.encoder_layers, encoded, encoded) + c.encoder_layers * encoded * feed_forward
    decoder = attention("decoder", c.decoder_layers, decoded, decoded) + c.decoder_layers * decoded * feed_forward
    cross = attention("cross", c.decoder_layers, decoded, encoded) if c.encoder_layers else 0
    outputs = decoded * 2 * c.d_model * c.output_size if c.decoder_layers else head_flops(c, decoded)
    if c.decoder_layers and c.head == "token":
        outputs += head_flops(c, encoded)
    return 3.0 * rows * (encoder + decoder + cross + outputs)


def head_flops(config: ModelConfig, positions: int) -> int:
    """FLOPs of the head of an encoder alone, for one text with outputs at this number of positions."""
    D, pooler = config.d_model, 2 * config.d_model**2
    if config.head == "none":
        return pooler
    if config.head in LABEL_HEADS:
        of_labels = 2 * D * config.labels
        return pooler + of_labels if config.head == "sequence" else positions * of_labels
    masked = positions * 2 * D * (D + config.vocab_size)
    return masked + (pooler + 4 * D if config.head == "pretraining" else 0)


def peak(device: jax.Device) -> float | None:
    """The peak bfloat16 FLOP/s of a device; None if it is not in `PEAKS`."""
    return next((rate for name, rate in PEAKS.items() if re.fullmatch(name, device.device_kind)), None)
