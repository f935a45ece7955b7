import dataclasses
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import jit
from tiny import SHALLOW, SOURCE, TARGET, VOCABULARY, forward, tiny

from transformer.config import BASE, BERT, BIG, ModelConfig
from transformer.model import Model, build


def paths(tree):
    return {
        "/".join(key.key for key in keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }  # fmt: skip


def count(config, vocab_size=37_000):
    return sum(math.prod(shape) for shape in paths(build(config.with_vocabulary(vocab_size)).abstract_params).values())


def test_parameter_counts_of_the_paper():
    # By hand, base: 37,000 * 512 + 6 * (4 * 512^2 + ff + 2 * 1024) + 6 * (8 * 512^2 + ff + 3 * 1024),
    # with ff = 2 * 512 * 2048 + 2048 + 512.
    assert count(BASE) == 63_045_632
    assert count(BIG) == 214_171_648
    assert f"{count(BASE) / 1e6:.2f} {count(BIG) / 1e6:.1f}" == "63.05 214.2"


def test_other_configs_change_the_count_by_what_they_add():
    base = count(BASE)
    table = 37_000 * 512
    assert count(dataclasses.replace(BASE, tied_embeddings="target")) - base == table
    assert count(dataclasses.replace(BASE, tied_embeddings="none")) - base == 2 * table
    assert count(dataclasses.replace(BASE, positions="learned")) - base == 2 * 1024 * 512
    assert count(dataclasses.replace(BASE, positions="none")) == base
    assert count(dataclasses.replace(BASE, pre_norm=True)) - base == 2 * 1024
    # 18 attentions lose 7 of 8 key and value heads of size 64.
    assert base - count(dataclasses.replace(BASE, kv_heads=1)) == 18 * 2 * 7 * 64 * 512


LAYER = {
    "feed_forward/b1": (24,),
    "feed_forward/b2": (16,),
    "feed_forward/w1": (16, 24),
    "feed_forward/w2": (24, 16),
    "feed_forward_norm/bias": (16,),
    "feed_forward_norm/scale": (16,),
    "self_attention/key": (16, 2, 3),
    "self_attention/output": (4, 5, 16),
    "self_attention/query": (16, 4, 3),
    "self_attention/value": (16, 2, 5),
    "self_attention_norm/bias": (16,),
    "self_attention_norm/scale": (16,),
}
CROSS = {k.replace("self_", "cross_"): v for k, v in LAYER.items() if k.startswith("self_")}


def test_parameter_paths_are_frozen():
    """Checkpoints on disk, sharding rules and importers use these names."""
    config = ModelConfig(
        encoder_layers=2, decoder_layers=1, d_model=16, d_ff=24, heads=4, kv_heads=2, d_k=3, d_v=5, max_positions=12,
        positions="learned", pre_norm=True, tied_embeddings="none",
    )  # fmt: skip
    expected = {
        "embedding/table": (13, 16),
        "target_embedding/table": (13, 16),
        "output_embedding/table": (13, 16),
        "source_positions": (12, 16),
        "target_positions": (12, 16),
        "encoder/norm/bias": (16,),
        "encoder/norm/scale": (16,),
        "decoder/norm/bias": (16,),
        "decoder/norm/scale": (16,),
    }
    expected |= {f"encoder/layers/{i}/{k}": v for i in range(2) for k, v in LAYER.items()}
    expected |= {f"decoder/layers/0/{k}": v for k, v in {**LAYER, **CROSS}.items()}
    assert paths(build(config.with_vocabulary(13)).abstract_params) == expected

    bert = dataclasses.replace(
        BERT, encoder_layers=1, d_model=16, d_ff=24, heads=4, kv_heads=2, d_k=3, d_v=5, max_positions=12, vocab_size=13
    )
    bert = dataclasses.replace(bert, attention_bias=False)
    common = {f"encoder/layers/0/{k}": v for k, v in LAYER.items()} | {
        "embedding/table": (13, 16),
        "positions": (12, 16),
        "token_types": (2, 16),
        "input_norm/scale": (16,),
        "input_norm/bias": (16,),
    }
    pooler = {"pooler/w": (16, 16), "pooler/bias": (16,)}
    masked = {"masked_head/w": (16, 16), "masked_head/bias": (16,), "output_bias": (13,)}
    masked |= {"masked_norm/scale": (16,), "masked_norm/bias": (16,)}
    next_sentence = {"next_sentence_head/w": (16, 2), "next_sentence_head/bias": (2,)}
    labels = {"label_head/w": (16, 3), "label_head/bias": (3,)}
    for fields, parts in (
        ({"head": "none"}, pooler),
        ({"head": "masked"}, masked),
        ({}, pooler | masked | next_sentence),
        ({"head": "sequence", "labels": 3}, pooler | labels),
        ({"head": "token", "labels": 3}, labels),
    ):
        assert paths(build(dataclasses.replace(bert, **fields)).abstract_params) == common | parts

    few = paths(build(SHALLOW.with_vocabulary(13)).abstract_params)
    names = {k.split("/", 2)[-1] if "layers" in k else k for k in few}
    assert names == {"embedding/table", *(f"0/{k}" for k in (*LAYER, *CROSS))}


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(1, 1, rngs=rngs) for _ in range(12)])

    def biases(self, factor):
        return [layer.bias[0] * factor for layer in self.layers]


def test_any_module_and_more_than_ten_layers():
    """Layer "10" comes after layer "9", not after layer "1"."""
    model = Model(ModelConfig(), lambda rngs: Stack(rngs))
    assert set(model.abstract_params["layers"]) == {str(i) for i in range(12)}
    params = {"layers": {str(i): {"bias": np.array([float(i)]), "kernel": np.zeros((1, 1))} for i in range(12)}}
    assert [int(b) for b in model.bind(params).biases(2)] == list(range(0, 24, 2))


def test_init_is_a_pure_function_of_the_key():
    model, _ = tiny(dataclasses.replace(SHALLOW, encoder_layers=2))
    init = jit(model.init)
    first, again, other = init(jax.random.key(1)), init(jax.random.key(1)), init(jax.random.key(2))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.abstract_params
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["embedding"]["table"] != other["embedding"]["table"]).any()
    queries = [layer["self_attention"]["query"] for layer in first["encoder"]["layers"].values()]
    assert (queries[0] != queries[1]).any()
    assert {x.dtype for x in jax.tree.leaves(first)} == {jnp.dtype("float32")}


def edited(params, path, value):
    tree = jax.tree.map(lambda x: x, params)
    *parents, last = path.split("/")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder/layers/1/feed_forward/w1", None, "missing encoder/layers/1/feed_forward/w1"),
        ("decoder/layers/2/feed_forward/w1", np.zeros((16, 24)), "unknown decoder/layers/2/feed_forward/w1"),
        ("output_embedding/table", np.zeros((13, 16)), "unknown output_embedding/table"),
        ("embedding/table", np.zeros((14, 16)), "embedding/table has shape (14, 16), not (13, 16)"),
        ("embedding/table", np.zeros((13, 16), int), "embedding/table is of type int64, not of floats"),
        ("embedding/table", np.zeros((13, 16), complex), "embedding/table is of type complex128, not of floats"),
        ("embedding/table", np.zeros((13, 16), object), "embedding/table is of type object, not of floats"),
    ],
)
def test_params_that_do_not_fit_are_named(path, value, message):
    model, params = tiny()
    with pytest.raises(ValueError, match="parameters do not fit the model") as error:
        model.apply(edited(params, path, value), SOURCE, TARGET)
    assert message in str(error.value) and ";" not in str(error.value)


def test_params_of_nnx_and_of_linen():
    """NNX names places in a list by integers; Linen puts everything below one key."""
    model, params = tiny(SHALLOW)
    module = model.bind(params)
    np.testing.assert_array_equal(
        forward(SHALLOW)(nnx.to_pure_dict(nnx.state(module)), SOURCE, TARGET), forward(SHALLOW)(params, SOURCE, TARGET)
    )
    with pytest.raises(ValueError, match=r"^params has the single key 'params', as flax\.linen has it: give params"):
        model.bind({"params": params})


def test_all_misfits_are_named_in_one_error():
    model, params = tiny()
    wrong = edited(edited(params, "embedding/table", np.zeros((1, 2))), "encoder/norm/scale", np.ones(16))
    del wrong["decoder"]["layers"]["0"]
    with pytest.raises(ValueError, match="parameters do not fit") as error:
        model.apply(wrong, SOURCE, TARGET)
    message = str(error.value)
    assert message.count("missing decoder/layers/0/") == 18
    assert "unknown encoder/norm/scale" in message and "embedding/table has shape (1, 2)" in message


def test_apply_changes_nothing_and_takes_numpy_params():
    _, params = tiny()
    before = jax.tree.map(np.array, params)
    apply = forward()
    first = apply(params, SOURCE, TARGET)
    np.testing.assert_array_equal(apply(jax.tree.map(np.asarray, params), SOURCE, TARGET), first)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert first.shape == (*TARGET.shape, VOCABULARY) and first.dtype == jnp.float32


def test_a_model_is_a_static_argument():
    """Equal configs give the same `Model`, so nothing is compiled again."""
    model, _ = tiny()
    assert hash(model) == hash(model) and model == model
    again = build(ModelConfig(**vars(SHALLOW)).with_vocabulary(13))
    assert again is build(SHALLOW.with_vocabulary(13))
    assert again not in (
        build(SHALLOW.with_vocabulary(14)),
        build(dataclasses.replace(SHALLOW, kv_heads=1).with_vocabulary(13)),
    )


def test_a_model_is_shown_and_pickled():
    model, _ = tiny()
    assert repr(model).startswith("<Model(ModelConfig(encoder_layers=2, decoder_layers=2, d_model=16, d_ff=24, heads=4")
    count = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params))
    assert repr(model).endswith(f"vocab_size=13, max_positions=12)): {count:,} parameters>")
    assert model.config.d_ff == 24
    assert pickle.loads(pickle.dumps(model)) is model
    other = Model(ModelConfig(), Stack)  # any module that can be imported
    again = pickle.loads(pickle.dumps(other))
    assert again is not other and again == other and hash(again) == hash(other) and other != model


@pytest.mark.parametrize("initializer", ["scaled", "bert"])
def test_parameters_are_the_same_where_jax_computes_in_64_bits(initializer):
    model = build(
        dataclasses.replace(SHALLOW, initializer=initializer, positions="learned").with_vocabulary(VOCABULARY)
    )
    expected = model.init(jax.random.key(3))
    with jax.enable_x64(True):
        params = model.init(jax.random.key(3))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_model_cannot_be_changed():
    """All who build the same config share it."""
    model = build(SHALLOW.with_vocabulary(VOCABULARY))
    with pytest.raises(ValueError, match=r"^a Model is immutable: to change its config, build another one$"):
        model.config = dataclasses.replace(model.config, dropout=0.5)
    with pytest.raises(ValueError, match="a Model is immutable"):
        del model.config
    assert model == build(SHALLOW.with_vocabulary(VOCABULARY)) and model.config.dropout == SHALLOW.dropout
