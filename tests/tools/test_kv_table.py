import dataclasses

import jax
import pytest

from transformer.config import AttentionConfig, Config, ModelConfig, UserError
from transformer.model import build
from transformer.tools import kv_table as kv_table_module
from transformer.tools.kv_table import cache_bytes, decode_seconds, variants

# The 1B models of Brandon et al. 2024 (2405.12981): 20 layers of width 2,048 and heads of 128, 16-bit numbers.
PUBLISHED = ModelConfig(decoder_layers=20, d_model=2048, heads=16, dtype="bfloat16")


@pytest.mark.parametrize(("name", "expected"), [("MHA", 163_840), ("MQA", 10_240), ("MQA+CLA2", 5_120)])
def test_published_bytes_of_cache_a_token(name, expected):
    assert cache_bytes(variants(PUBLISHED)[name])[0] == expected


@pytest.mark.parametrize("name", ["as it is", "MHA", "GQA-2", "MQA", "MHA+CLA2", "MQA+CLA2"])
def test_the_formula_is_what_the_model_holds(name):
    """Three decoder layers in groups of two, keys and values of different sizes, other settings for cross-attention."""
    small = ModelConfig(encoder_layers=1, decoder_layers=3, d_model=16, d_ff=16, heads=8, d_k=3, d_v=5)
    config = dataclasses.replace(variants(small)[name], cross_attention=AttentionConfig(kv_heads=4))
    model = build(config.with_vocabulary(9))
    params = model.abstract_params
    cache = jax.eval_shape(lambda p: model.bind(p).init_cache(2, 7, 3), params)
    source = jax.ShapeDtypeStruct((2, 11), "int32")
    memory = jax.eval_shape(lambda p, s: model.bind(p).encode(s), params, source)
    size = {
        kind: sum(x.size * 4 for x in jax.tree.leaves(kv)) for kind, kv in (("own", cache.kv), ("cross", memory.kv))
    }
    token, source = cache_bytes(config)
    assert size == {"own": token * 2 * 3 * 7, "cross": source * 2 * 11}


CONFIG = """
from transformer.config import AttentionConfig, Config, DataConfig, DecodeConfig, ModelConfig

config = Config(
    model=ModelConfig(
        encoder_layers=3, decoder_layers=3, d_model=16, d_ff=24, heads=8, positions="learned", max_positions=30,
        encoder_attention=AttentionConfig(window=2),
        decoder_attention=AttentionConfig(kv_heads=2, kv_sharing=2, window=5),
        cross_attention=AttentionConfig(kv_heads=4),
    ),
    data=DataConfig(vocab_size=32, max_length=30),
    decode=DecodeConfig(beam_size=3, max_source_length=20, max_extra_length=9),
)
"""

# Key/value heads in encoder, decoder and cross-attention; and how many of the three layers have new keys and values.
GROUPS = {
    "as it is": ((8, 2, 4), (3, 2, 3)),
    "MHA": ((8, 8, 8), (3, 3, 3)),
    "GQA-2": ((2, 2, 2), (3, 3, 3)),
    "MQA": ((1, 1, 1), (3, 3, 3)),
    "MHA+CLA2": ((8, 8, 8), (2, 2, 2)),
    "MQA+CLA2": ((1, 1, 1), (2, 2, 2)),
}
# Count of numbers in tables of pieces and positions, queries and outputs, feed-forward, norms.
ELSEWHERE = 32 * 16 + 2 * 30 * 16 + 9 * 2 * 16 * 16 + 6 * (2 * 16 * 24 + 24 + 16) + 15 * 2 * 16


def test_the_table_by_hand(call, tmp_path, monkeypatch):
    """With fewer learned positions than the default length."""
    seconds = iter([0.58, 0.29, *[0.0] * 4])
    monkeypatch.setattr(kv_table_module, "decode_seconds", lambda *_, **given: asked.append(given) or next(seconds))
    asked = []
    (tmp_path / "mine.py").write_text(CONFIG)
    done = call("transformer", "describe", "--kv", "--config", tmp_path / "mine.py")
    assert (done.code, done.err) == (0, "")
    title, head, *rows = done.out.splitlines()[:-2]
    assert title.startswith(
        "8 sentences, beam 3, 29 pieces out, sources of 24 pieces, decode.dtype auto, cache in float32"
    )
    assert head.split() == ["variant", "bytes/token", "bytes/source", "bytes/sentence", "parameters", "ms/token"]
    assert [row[:10].strip() for row in rows] == list(GROUPS)
    for row, (heads, groups) in zip(rows, GROUPS.values(), strict=True):
        (_, own, cross), (_, decoder, memory) = heads, groups
        token, source = decoder * own * (2 + 2) * 4, memory * cross * (2 + 2) * 4
        numbers = ELSEWHERE + sum(n * 2 * 16 * 2 * g for n, g in zip(heads, groups, strict=True))
        found = [int(word.replace(",", "")) for word in row[10:].split()[:-1]]
        assert found == [token, source, token * 3 * 29 + source * 24, numbers]
    assert [row.split()[-1] for row in rows] == ["2.50", "1.25", *["0.00"] * 4]
    assert asked == [{"sentences": 8, "beam_size": 3, "source": 24, "length": 29, "dtype": "auto"}] * 6


def test_the_vocabulary_is_that_of_the_model(monkeypatch):
    monkeypatch.setattr(kv_table_module, "decode_seconds", lambda model, size, **_: sizes.append(size) or 0.0)
    sizes = []
    config = Config(model=ModelConfig(d_model=16, d_ff=16, heads=2, vocab_size=50))
    list(kv_table_module.kv_table(config))
    assert set(sizes) == {50}


def test_what_is_timed_is_what_was_asked_for():
    """The timed search has these output and source lengths, and needs no more positions."""
    model = ModelConfig(
        encoder_layers=1, decoder_layers=1, d_model=16, d_ff=16, heads=2, positions="learned", max_positions=7
    )
    sizes = {"sentences": 2, "beam_size": 2, "source": 6, "length": 6}
    assert decode_seconds(model, 32, **sizes) > 0
    with pytest.raises(UserError, match="model has only 6"):
        decode_seconds(dataclasses.replace(model, max_positions=6), 32, **sizes)
