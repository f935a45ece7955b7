"""Our weights as a CTranslate2 model. Run by `systems.py convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2 as ct2
import jax
import jax.numpy as jnp
import numpy as np

from transformer.checkpoint import Checkpoints
from transformer.model.inputs import sinusoids
from transformer.tools.hf.marian import refuse_inexpressible


def convert(run: str, ctranslate2: str, **_: Any) -> None:
    """Write our last checkpoint as a CTranslate2 model: pieces are called by their ids.

    Its layout is near ours: no biases, any table of positions. Queries, keys and values are one matrix there.
    """
    opened = Checkpoints(run).open("last")
    config, vocab_size = opened.config.model, opened.progress["vocab_size"]
    refuse_inexpressible(config)
    params = jax.tree.map(np.asarray, opened.params())
    positions = np.asarray(sinusoids(jnp.arange(1024)[None], config.d_model)[0])

    spec = ct2.specs.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers), config.heads, pre_norm=False
    )
    table = params["embedding"]["table"]
    for side, embeddings in ((spec.encoder, spec.encoder.embeddings[0]), (spec.decoder, spec.decoder.embeddings)):
        embeddings.weight = table
        side.position_encodings.encodings = positions
    linear(spec.decoder.projection, table.T)
    for name, side in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        for i, layer_spec in enumerate(side.layer):
            layer(layer_spec, params[name]["layers"][str(i)])
    pieces = ["<blank>", "<s>", "</s>", "<unk>", *map(str, range(4, vocab_size))]
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.layer_norm_epsilon = 1e-6
    spec.validate()
    spec.optimize(quantization=None)
    Path(ctranslate2).mkdir(parents=True, exist_ok=True)
    spec.save(ctranslate2)


def linear(spec: Any, *matrices: Any, bias: Any = None) -> None:
    """Matrices (in, out), their outputs side by side."""
    spec.weight = np.concatenate([m.T for m in matrices])
    if bias is not None:
        spec.bias = bias


def norm(spec: Any, p: Any) -> None:
    spec.gamma, spec.beta = p["scale"], p["bias"]


def attention(spec: Any, p: Any, p_norm: Any, groups: Sequence[Sequence[str]]) -> None:
    d_model = p["output"].shape[-1]
    for target, names in zip(spec.linear, groups, strict=False):
        linear(target, *(p[name].reshape(d_model, -1) for name in names))
    linear(spec.linear[-1], p["output"].reshape(-1, d_model))
    norm(spec.layer_norm, p_norm)


def layer(spec: Any, p: Any) -> None:
    attention(spec.self_attention, p["self_attention"], p["self_attention_norm"], [["query", "key", "value"]])
    if "cross_attention" in p:
        attention(spec.attention, p["cross_attention"], p["cross_attention_norm"], [["query"], ["key", "value"]])
    linear(spec.ffn.linear_0, p["feed_forward"]["w1"], bias=p["feed_forward"]["b1"])
    linear(spec.ffn.linear_1, p["feed_forward"]["w2"], bias=p["feed_forward"]["b2"])
    norm(spec.ffn.layer_norm, p["feed_forward_norm"])
