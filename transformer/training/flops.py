"""Model FLOPs of an update, and the peak rates of devices.

The count follows Chowdhery et al. 2022 (PaLM, appendix B). It includes matrix products only: 2 m k n FLOPs for (m, k)
times (k, n). It includes padding, and attention to masked positions, such as those of other sentences in a packed row.
It does not include what rematerialisation computes again.
"""

from __future__ import annotations

import re

import jax

from transformer.config import LABEL_HEADS, ByteLatentModel, ModelConfig
from transformer.model.patches import most

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
    encoder = _stack(c, "encoder", c.encoder_layers, encoded)
    decoder = _stack(c, "decoder", c.decoder_layers, decoded)
    cross = _attention(c, "cross", c.decoder_layers, decoded, encoded) if c.encoder_layers else 0
    outputs = decoded * 2 * c.d_model * c.output_size if c.decoder_layers else head_flops(c, decoded)
    if c.decoder_layers and c.head == "token":
        outputs += head_flops(c, encoded)
    return 3.0 * rows * (encoder + decoder + cross + outputs)


def byte_latent_flops(config: ByteLatentModel, rows: int, length: int) -> float:
    """FLOPs of one update of a Byte Latent Transformer on `rows` rows of `length` bytes, with as many patches as there
    is room for. The model of entropies counts with one forward pass. Embeddings, looked up, count as nothing."""
    c, patches = config, most(config.patches, length)
    vectors = patches * (c.latent.d_model // c.d_model)
    bytes_ = _stack(c, "encoder", c.encoder_layers, length) + _stack(c, "decoder", c.decoder_layers, length)
    pooling = patches * 2 * c.d_model * c.latent.d_model + _attention(c, "cross", 1, vectors, length)
    latent = _stack(c.latent, "decoder", c.latent.decoder_layers, patches)
    cross = _attention(c, "cross", c.decoder_layers, length, vectors)
    outputs = length * 2 * c.d_model * c.vocab_size
    entropies = 0.0
    if c.patches.by == "entropy":
        entropies = update_flops(c.entropy.with_vocabulary(c.vocab_size), rows, 0, length) / 3
    return 3.0 * rows * (bytes_ + pooling + latent + cross + outputs) + entropies


def _stack(config: ModelConfig, kind: str, layers: int, positions: int) -> float:
    """FLOPs of self-attention and feed-forward networks for one text."""
    return (
        _attention(config, kind, layers, positions, positions) + layers * positions * 4 * config.d_model * config.d_ff
    )


def _attention(config: ModelConfig, kind: str, layers: int, positions: int, keys: int) -> float:
    """FLOPs of one kind of attention for one text, in this number of layers."""
    c, options = config, config.attention(kind)
    queries, heads = 2 * c.d_model * c.heads * c.key_size, c.heads * (c.key_size + c.value_size)
    project = positions * (queries + 2 * c.heads * c.value_size * c.d_model)
    kv = -(-layers // options.kv_sharing) * keys * 2 * c.d_model * options.kv_heads * (c.key_size + c.value_size)
    return layers * (project + positions * keys * 2 * heads) + kv


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
