from __future__ import annotations

import dataclasses
import re

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

from transformer.config import MeshConfig, ModelConfig, TrainConfig, UserError
from transformer.model import build
from transformer.training.optimizer import optimizer
from transformer.training.sharding import RULES, batch_sharding, batch_ways, make_mesh, shardings, spec
from transformer.training.step import init_state

TINY = ModelConfig(encoder_layers=2, decoder_layers=2, d_model=16, d_ff=32, heads=4, max_positions=8)
BERT = {"decoder_layers": 0, "token_types": 2, "input_norm": True, "output_bias": True, "positions": "learned"}
VARIANTS = [
    {},
    {"pre_norm": True},
    {"positions": "learned"},
    {"positions": "none"},
    {"tied_embeddings": "target"},
    {"tied_embeddings": "none"},
    {"kv_heads": 1},
    {"d_k": 6, "d_v": 10},
    {"attention_bias": True, "output_bias": True, "positions": "rotary"},
    {"attention_score": "additive", "values": "keys"},
    {"norm_bias": False},
    {"input_norm": True},
    *({**BERT, "head": head} for head in ("none", "masked", "pretraining")),
    *({**BERT, "head": head, "labels": 3} for head in ("sequence", "token")),
]


def flat(tree) -> dict:
    """Path -> leaf. The path is written with slashes, and contains indices and attribute names, too."""
    return {
        "/".join(re.sub(r"\W", "", str(key)) for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_of_every_variant_has_one_rule(variant: dict) -> None:
    params = build(dataclasses.replace(TINY, **variant).with_vocabulary(24)).abstract_params
    for path, leaf in flat(params).items():
        matching = [rule for pattern, rule in RULES if re.fullmatch(pattern, path)]
        assert len(matching) == 1, path
        assert len(matching[0]) <= len(leaf.shape), path
        # A matrix is cut along both axes, so that neither optimiser state nor activations are replicated everywhere.
        if path.endswith(("table", "query", "key", "value", "output", "w1", "w2", "pooler/w", "masked_head/w")):
            assert {"fsdp", "tensor"} <= set(matching[0]), path


def test_no_rule_is_idle() -> None:
    paths = [
        path
        for variant in VARIANTS
        for path in flat(build(dataclasses.replace(TINY, **variant).with_vocabulary(24)).abstract_params)
    ]
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


def test_the_table() -> None:
    assert spec("embedding/table") == P("tensor", "fsdp")
    assert spec("output_embedding/table") == P("tensor", "fsdp")
    assert spec("encoder/layers/0/self_attention/query") == P("fsdp", "tensor", None)
    assert spec("decoder/layers/11/cross_attention/output") == P("tensor", None, "fsdp")
    assert spec("decoder/layers/1/feed_forward/w2") == P("tensor", "fsdp")
    assert spec("decoder/layers/1/feed_forward_norm/scale") == P()
    with pytest.raises(ValueError, match="no sharding rule matches the parameter encoder/adapter"):
        spec("encoder/adapter")


def abstract_mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    """A mesh of more devices than this machine has."""
    names = ("data", "fsdp", "tensor")
    return jax.sharding.AbstractMesh(tuple(sizes.get(name, 1) for name in names), names)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"tensor": 8}, r"mesh.tensor = 8 does not divide .*attention/(key|query|value|output), .* dimension of 4"),
        ({"tensor": 3}, r"mesh.tensor = 3 does not divide .*, which has a dimension of (4|32)"),
        ({"fsdp": 32}, r"mesh.fsdp = 32 does not divide .*, which has a dimension of 16"),
    ],
)
def test_a_dimension_that_an_axis_does_not_divide(sizes: dict, told: str) -> None:
    params = build(TINY.with_vocabulary(24)).abstract_params
    with pytest.raises(UserError, match=told):
        shardings(params, abstract_mesh(**sizes))
    shardings(params, abstract_mesh(data=5))  # the data axis cuts no parameter


def test_a_vocabulary_that_the_tensor_axis_does_not_divide() -> None:
    params = build(TINY.with_vocabulary(23)).abstract_params
    with pytest.raises(UserError, match=r"mesh.tensor = 2 does not divide embedding/table, .* dimension of 23"):
        shardings(params, abstract_mesh(tensor=2))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_optimizer_state_lies_as_its_parameters_do(clip_norm: float | None) -> None:
    model, mesh = build(TINY.with_vocabulary(24)), abstract_mesh(data=2, fsdp=4, tensor=2)
    tx = optimizer(TrainConfig(clip_norm=clip_norm), 16)
    state = jax.eval_shape(lambda: init_state(model.init, tx, 0))
    layout = shardings(state, mesh)
    assert layout.step.spec == P()
    for path, sharding in flat(layout.params).items():
        assert sharding.spec == spec(path)
    moments = [s for s in jax.tree.leaves(layout.optimizer, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))]
    adam = next(s for s in moments if isinstance(s, optax.ScaleByAdamState))
    assert flat(adam.mu) == flat(adam.nu) == flat(layout.params)
    assert adam.count.spec == P()


def test_the_mesh_takes_all_devices_or_says_why_not() -> None:
    devices = jax.devices()[:1]
    mesh = make_mesh(MeshConfig(), devices)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert batch_ways(mesh) == 1
    with pytest.raises(UserError, match=r"2 \* 1 \* 1 does not match the number of devices, 1"):
        make_mesh(MeshConfig(data=2), devices)
    with pytest.raises(UserError, match=r"-1 \* 2 \* 1 does not match the number of devices, 1"):
        make_mesh(MeshConfig(fsdp=2), devices)


def test_rows_of_a_batch_are_cut_over_data_and_fsdp() -> None:
    mesh = abstract_mesh(data=2, fsdp=4, tensor=2)
    assert batch_sharding(mesh).shard_shape((16, 7)) == (2, 7)
    assert batch_sharding(mesh, micro_batches=True).shard_shape((3, 16, 7)) == (3, 2, 7)
    assert batch_ways(mesh) == 8
