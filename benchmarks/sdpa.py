"""The paper's Transformer on PyTorch's scaled-dot-product attention, as gpu.py trains it beside ours.

    python benchmarks/sdpa.py eager|compile '{"model": "base", "dtype": "bfloat16", ...}'

A request is how many updates to do, and its answer how long they took and the losses. Rows are packed; no attention has
biases; one table serves source, target and output; dropout, label smoothing and Adam are the paper's.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_systems import model_config, packed_pieces

from transformer.config import BOS, EOS, PAD


class Attention(nn.Module):
    """Multi-head attention without biases. Queries, keys and values are one matrix: self-attention is one product."""

    def __init__(self, d_model: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * d_model, d_model)))
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor, mask_B1TS: Tensor, memory_BSD: Tensor | None = None) -> Tensor:
        d_model = x_BTD.shape[-1]
        if memory_BSD is None:
            parts = F.linear(x_BTD, self.qkv).chunk(3, -1)
        else:
            keys_and_values = F.linear(memory_BSD, self.qkv[d_model:]).chunk(2, -1)
            parts = F.linear(x_BTD, self.qkv[:d_model]), *keys_and_values
        q_BNTH, k_BNSH, v_BNSH = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_B1TS)
        return self.output(y_BNTH.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, and feed-forward; a norm after each residual sum."""

    def __init__(self, c: dict[str, Any], cross: bool):
        super().__init__()
        d_model, d_ff = c["d_model"], c["d_ff"]
        self.attention = Attention(d_model, c["heads"])
        self.cross = Attention(d_model, c["heads"]) if cross else None
        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model, eps=1e-6) for _ in range(2 + cross))
        self.dropout = nn.Dropout(c["dropout"])

    def forward(
        self, x_BTD: Tensor, mask_B1TT: Tensor, memory_BSD: Tensor | None = None, mask_B1TS: Tensor | None = None
    ) -> Tensor:
        x_BTD = self.norms[0](x_BTD + self.dropout(self.attention(x_BTD, mask_B1TT)))
        if self.cross is not None:
            x_BTD = self.norms[1](x_BTD + self.dropout(self.cross(x_BTD, mask_B1TS, memory_BSD)))
        return self.norms[-1](x_BTD + self.dropout(self.feed_forward(x_BTD)))


class Network(nn.Module):
    """The loss of a packed batch. Masks and positions come with the batch, made before the clock runs."""

    def __init__(self, c: dict[str, Any], vocab_size: int, length: int):
        super().__init__()
        self.d_model = c["d_model"]
        self.table = nn.Parameter(torch.randn(vocab_size, self.d_model) * self.d_model**-0.5)
        self.encoder = nn.ModuleList(Layer(c, cross=False) for _ in range(c["encoder_layers"]))
        self.decoder = nn.ModuleList(Layer(c, cross=True) for _ in range(c["decoder_layers"]))
        self.dropout = nn.Dropout(c["dropout"])
        angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, self.d_model, 2) / self.d_model)
        self.register_buffer("sinusoids", torch.stack([angles.sin(), angles.cos()], -1).reshape(length, self.d_model))

    def embed(self, tokens_BT: Tensor, places_BT: Tensor) -> Tensor:
        x_BTD = F.embedding(tokens_BT, self.table) * math.sqrt(self.d_model)
        return self.dropout(x_BTD + self.sinusoids[places_BT])

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        memory_BSD = self.embed(batch["source"], batch["source_places"])
        for layer in self.encoder:
            memory_BSD = layer(memory_BSD, batch["source_mask"])
        x_BTD = self.embed(batch["before"], batch["target_places"])
        for layer in self.decoder:
            x_BTD = layer(x_BTD, batch["target_mask"], memory_BSD, batch["cross_mask"])
        logits_XV = F.linear(x_BTD.flatten(0, 1), self.table)
        return F.cross_entropy(logits_XV, batch["target"].flatten(), ignore_index=PAD, label_smoothing=0.1)


def packed_batch(source: np.ndarray, target: np.ndarray) -> dict[str, Tensor]:
    """The batch with positions that restart in each sentence, and block-diagonal masks, True = may attend.

    Padding attends to padding: no row of a mask is empty, which would give NaN.
    """

    def sentences(tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begins_BT = np.pad(tokens_BT[:, :-1] == EOS, ((0, 0), (1, 0)))
        t_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
        places_BT = t_BT - np.maximum.accumulate(np.where(begins_BT, t_BT, 0), axis=1)
        return places_BT, np.cumsum(begins_BT, axis=1)

    (source_places, source_BS), (target_places, target_BT) = sentences(source), sentences(target)
    before = np.where(target_places == 0, BOS, np.pad(target[:, :-1], ((0, 0), (1, 0))))
    earlier_TT = np.tri(target.shape[1], dtype=bool)
    batch = {
        **{"source": source, "before": before, "target": target},
        **{"source_places": source_places, "target_places": target_places},
        "source_mask": (source_BS[:, :, None] == source_BS[:, None])[:, None],
        "target_mask": (target_BT[:, :, None] == target_BT[:, None])[:, None] & earlier_TT,
        "cross_mask": (target_BT[:, :, None] == source_BS[:, None])[:, None],
    }
    return {name: torch.from_numpy(x if x.dtype == bool else x.astype(np.int64)) for name, x in batch.items()}


def system(compiled: bool) -> Callable[..., Any]:
    """What starts the system: eager, or under `torch.compile`."""

    def start(
        model: str, dtype: str, rows: int, length: int, vocab_size: int, threads: int, device: str, seed: int, **_: Any
    ) -> Any:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        if device != "cpu":
            torch.set_float32_matmul_precision("high")
        network = Network(vars(model_config(model)), vocab_size, length).to(device).train()
        adam = torch.optim.Adam(network.parameters(), lr=1e-7, betas=(0.9, 0.98), eps=1e-9, fused=True)
        batch = packed_batch(*packed_pieces(rows, length, vocab_size, seed))
        batch = {name: x.to(device) for name, x in batch.items()}
        forward = torch.compile(network) if compiled else network

        def update() -> Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = forward(batch)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            return loss.detach()

        def updates(count: int) -> dict[str, Any]:
            began = time.perf_counter()
            losses = [float(loss) for loss in [update() for _ in range(count)]]
            seconds = time.perf_counter() - began
            peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
            return {"seconds": seconds, "losses": losses, "device_peak_mib": peak / 2**20}

        first, second = (updates(1)["seconds"] for _ in range(2))
        ready = {
            "compile_s": first - second if compiled else 0.0,
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        return ready, updates

    return start


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    from side_by_side import answer_requests

    answer_requests(system(sys.argv[1] == "compile"), json.loads(sys.argv[2]))
