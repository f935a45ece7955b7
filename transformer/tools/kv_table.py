"""A table of what sharing keys and values saves: cache, parameters and decoding time of variants of a model."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import AttentionConfig, Config, DecodeConfig, ModelConfig
from transformer.inference.engine import cache_type
from transformer.inference.translator import Translator
from transformer.memory import require_memory
from transformer.model import build
from transformer.model.rounding import in_type
from transformer.tools.describe import vocabulary_size

BYTES = {"float32": 4, "bfloat16": 2}
SOURCE_LENGTH = 24  # pieces, end of sentence included


def cache_bytes(model: ModelConfig) -> tuple[int, int]:
    """Bytes of keys and values: for one position of a hypothesis (decoder self-attention), and for one source position
    (cross-attention). Each is (sets of keys and values over layers) * heads * (d_k + d_v) * bytes of a number."""

    def of(kind: str) -> int:
        attention = model.attention(kind)
        groups = -(-model.decoder_layers // attention.kv_sharing)
        return groups * attention.kv_heads * (model.key_size + model.value_size) * BYTES[model.dtype]

    return of("decoder"), of("cross")


def variants(model: ModelConfig) -> Mapping[str, ModelConfig]:
    """The model unchanged, and its usual variants, without windows: MHA (multi-head), GQA (grouped-query, a quarter of
    the heads), MQA (multi-query), CLA2 (two neighbouring layers share keys and values)."""

    def shared(heads: int, layers: int = 1) -> ModelConfig:
        same = AttentionConfig()
        return dataclasses.replace(
            model,
            kv_heads=heads,
            kv_sharing=layers,
            encoder_attention=same,
            decoder_attention=same,
            cross_attention=same,
        )

    rows = {"as it is": model, "MHA": shared(model.heads)}
    if model.heads % 4 == 0 and model.heads > 4:
        rows[f"GQA-{model.heads // 4}"] = shared(model.heads // 4)
    return rows | {"MQA": shared(1), "MHA+CLA2": shared(model.heads, 2), "MQA+CLA2": shared(1, 2)}


def decode_seconds(
    model: ModelConfig,
    vocab_size: int,
    *,
    sentences: int,
    beam_size: int,
    source: int,
    length: int,
    dtype: str = "auto",
) -> float:
    """Seconds of beam search, compilation not included, for `sentences` outputs of exactly `length` pieces.

    Parameters are random, of type `dtype` (as decode.dtype). Sources have `source` pieces, eos included.
    """
    random = build(model.with_vocabulary(vocab_size)).init(jax.random.key(0))
    model, params = in_type(dataclasses.replace(model, dropout=0.0), random, dtype)
    built = build(model.with_vocabulary(vocab_size))
    fixed = DecodeConfig(
        beam_size=beam_size,
        min_length=length,
        max_length=length,
        max_extra_length=length,
        max_source_length=source - 1,
        batch_sentences=sentences,
    )
    translator = Translator(built, params, None, fixed)
    sources = np.random.default_rng(0).integers(4, vocab_size, (sentences, source - 1)).tolist()
    seconds = []
    for _ in range(3):  # the first compiles
        began = time.perf_counter()
        found = list(translator.search(sources))
        assert all(len(tokens[0]) == length for _, (tokens, _) in found)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def kv_table(config: Config, *, sentences: int = 8, length: int = 64) -> Iterator[str]:
    """Lines of the table for the model of a config, measured on this machine's devices. Raises `UserError` if a device
    has no memory for the model."""
    pieces = vocabulary_size(config)
    params = build(config.model.with_vocabulary(pieces)).abstract_params
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    require_memory(4 * numbers, "the parameters", "lower the sizes of the model (--model.d_model, d_ff, ...)")
    beams, source_length = config.decode.beam_size, SOURCE_LENGTH
    if config.model.positions == "learned":
        length = min(length, config.model.max_positions - 1)  # one position is for eos
        source_length = min(source_length, config.model.max_positions - 1)
    kind = jax.devices()[0].device_kind
    dtype = config.decode.dtype
    decoded, _ = in_type(config.model, {}, dtype)
    cache = jnp.dtype(cache_type() or decoded.dtype).name
    yield (
        f"{sentences} sentences, beam {beams}, {length} pieces out, sources of {source_length} pieces, decode.dtype "
        f"{dtype}, cache in {cache}, random parameters, {kind}"
    )
    heads = ("bytes/token", 12), ("bytes/source", 13), ("bytes/sentence", 15), ("parameters", 12), ("ms/token", 9)
    yield " ".join([f"{'variant':10}", *(f"{head:>{width}}" for head, width in heads)])
    for name, model in variants(config.model).items():
        token, _ = cache_bytes(dataclasses.replace(model, dtype=cache))
        _, source = cache_bytes(dataclasses.replace(model, dtype=decoded.dtype))
        shapes = jax.tree.leaves(build(model.with_vocabulary(pieces)).abstract_params)
        seconds = decode_seconds(
            model,
            pieces,
            sentences=sentences,
            beam_size=beams,
            source=source_length,
            length=length,
            dtype=dtype,
        )
        yield (
            f"{name:10} {token:12,} {source:13,} {token * beams * length + source * source_length:15,} "
            f"{sum(math.prod(x.shape) for x in shapes):12,} {1e3 * seconds / (sentences * length):9.2f}"
        )
    yield "bytes/token: one hypothesis; bytes/sentence: source and all beams at full length, if beams shared no prefix"
    yield "(the cache stores a shared prefix once)"
