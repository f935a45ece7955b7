"""PyTorch's `nn.Transformer` as the paper's model, with one table for source, target and output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """The loss of a batch. `c`: the fields of a `ModelConfig`; `length`: positions in each row of the batch."""

    def __init__(self, c: dict[str, Any], vocab_size: int, length: int):
        super().__init__()
        d_model = c["d_model"]
        self.scale = math.sqrt(d_model)
        self.table = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.table.weight, std=d_model**-0.5)
        self.inner = nn.Transformer(
            d_model, c["heads"], c["encoder_layers"], c["decoder_layers"], c["d_ff"], c["dropout"], batch_first=True
        )
        # nn.Transformer drops attention weights and the inside of the feed-forward, too; the paper and ours do not.
        for layer in (*self.inner.encoder.layers, *self.inner.decoder.layers):
            layer.dropout.p = layer.self_attn.dropout = 0.0
        for layer in self.inner.decoder.layers:
            layer.multihead_attn.dropout = 0.0
        self.dropout = nn.Dropout(c["dropout"])
        angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
        positions = torch.stack([angles.sin(), angles.cos()], -1).reshape(length, d_model)
        self.register_buffer("positions", positions)
        self.register_buffer("later", nn.Transformer.generate_square_subsequent_mask(length))

    def embed(self, ids: Tensor) -> Tensor:
        return self.dropout(self.table(ids) * self.scale + self.positions)

    def forward(self, source: Tensor, before: Tensor, target: Tensor) -> Tensor:
        x = self.inner(self.embed(source), self.embed(before), tgt_mask=self.later, tgt_is_causal=True)
        logits = x.flatten(0, 1) @ self.table.weight.T
        return nn.functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1)
