import dataclasses

import jax
import pytest

from transformer.config import AttentionConfig, Config, DataConfig, ModelConfig
from transformer.model import encoder_decoder
from transformer.tools.kv_table import cache_bytes, kv_table, variants

# Brandon et al. 2024 (2405.12981), their 1B models: 20 layers of width 2,048 and heads of 128, 16-bit numbers.
PUBLISHED = ModelConfig(decoder_layers=20, d_model=2048, heads=16, dtype="bfloat16")


@pytest.mark.parametrize(("name", "expected"), [("MHA", 163_840), ("MQA", 10_240), ("MQA+CLA2", 5_120)])
def test_published_bytes_of_cache_a_token(name, expected):
    assert cache_bytes(variants(PUBLISHED)[name])[0] == expected


@pytest.mark.parametrize("name", ["MHA", "GQA-2", "MQA", "MHA+CLA2", "MQA+CLA2"])
def test_the_formula_is_what_the_model_holds(name):
    """Three decoder layers in groups of two, keys and values of different sizes, cross-attention on its own."""
    small = ModelConfig(encoder_layers=1, decoder_layers=3, d_model=16, d_ff=16, heads=8, d_k=3, d_v=5)
    config = dataclasses.replace(variants(small)[name], cross_attention=AttentionConfig(kv_heads=4))
    model = encoder_decoder(config, 9)
    params = model.abstract_params
    cache = jax.eval_shape(lambda p: model.apply(p, 2, 7, 3, method="init_cache"), params)
    source = jax.ShapeDtypeStruct((2, 11), "int32")
    memory = jax.eval_shape(lambda p, s: model.apply(p, s, method="encode"), params, source)
    size = {
        kind: sum(x.size * 4 for x in jax.tree.leaves(kv)) for kind, kv in (("own", cache.kv), ("cross", memory.kv))
    }
    token, source = cache_bytes(config)
    assert size == {"own": token * 2 * 3 * 7, "cross": source * 2 * 11}


def test_the_table_prints_every_variant():
    model = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=16, heads=8)
    config = Config(model=model, data=DataConfig(vocab_size=32))
    lines = list(kv_table(config, sentences=2, length=3))
    rows = [line.split() for line in lines[2:-2]]
    assert [row[0] for row in rows] == ["MHA", "GQA-2", "MQA", "MHA+CLA2", "MQA+CLA2"]
    assert [row[1] for row in rows] == ["256", "64", "32", "128", "16"]
    assert all(float(row[-1]) > 0 for row in rows)
