import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import AttentionConfig, ModelConfig, UserError
from transformer.model import build
from transformer.tasks.sets import read_set
from transformer.tools.convert import convert, mean_pool, write_start

OLD = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=24, heads=4)


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.abstract_params)


@pytest.mark.parametrize("bias", [False, True])
def test_heads_that_are_alike_are_pooled_without_loss(bias: bool):
    """If the heads of a group have the same keys and values, outputs don't change."""
    old = dataclasses.replace(OLD, attention_bias=bias)
    new = dataclasses.replace(old, kv_heads=2, cross_attention=AttentionConfig(kv_heads=1))
    few = build(new.with_vocabulary(13))
    params = random_params(few)

    def repeated(path, x):
        name = jax.tree_util.keystr(path)
        if "key" in name or "value" in name:
            return np.repeat(x, OLD.heads // x.shape[-2], axis=-2)
        return x

    many = jax.tree_util.tree_map_with_path(repeated, params)
    source, target = np.array([[5, 7, 2, 0]]), np.array([[1, 6, 4]])
    expected = build(old.with_vocabulary(13)).apply(many, source, target)
    pooled = mean_pool(many, old, new)
    assert jax.tree.map(np.shape, pooled) == jax.tree.map(lambda x: x.shape, few.abstract_params)
    np.testing.assert_allclose(few.apply(pooled, source, target), expected, atol=1e-5)


def test_each_head_is_the_mean_of_its_neighbours():
    new = dataclasses.replace(OLD, kv_heads=2)
    params = random_params(build(OLD.with_vocabulary(13)))
    key = params["decoder"]["layers"]["1"]["cross_attention"]["key"]
    pooled = mean_pool(params, OLD, new)["decoder"]["layers"]["1"]["cross_attention"]["key"]
    np.testing.assert_allclose(pooled[:, 0], (key[:, 0] + key[:, 1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(pooled[:, 1], (key[:, 2] + key[:, 3]) / 2, rtol=1e-6)
    with pytest.raises(UserError, match="3 key/value heads do not divide the model's 4"):
        mean_pool(params, OLD, dataclasses.replace(OLD, kv_heads=3))


def test_a_converted_workdir_translates(trained: Path, tmp_path: Path):
    out = tmp_path / "multi-query"
    old = Checkpoints(str(trained)).at(Checkpoints(str(trained)).choose()).config.model
    new = dataclasses.replace(old, kv_heads=1)
    convert(str(trained), str(out), new)
    _, params = transformer.load(str(out))
    assert params["encoder"]["layers"]["0"]["self_attention"]["key"].shape[1] == 1
    assert len(transformer.Translator.load(str(out)).translate(["one two"])) == 1
    assert Checkpoints(str(out)).at("average").progress["trainable"] is False
    for taken in (out, out / "tokenizer.model"):
        with pytest.raises(UserError, match="is not an empty folder"):
            convert(str(trained), str(taken), new)
    with pytest.raises(UserError, match=r"^model.d_ff: only the number of key/value heads"):
        convert(str(trained), str(tmp_path / "other"), dataclasses.replace(old, d_ff=7))


def test_sets_are_copied_without_what_else_lies_there(workdir: Path, tmp_path: Path):
    (workdir / "sets/mine").mkdir()
    (workdir / "sets/notes.txt").touch()
    opened, out = Checkpoints(workdir).open("last"), tmp_path / "out"
    write_start(opened, str(out), opened.params(), opened.config.model)
    for kind in ("dev", "test"):
        assert read_set(str(out), kind) == read_set(str(workdir), kind)
    assert not (out / "sets/mine").exists() and not (out / "sets/notes.txt").exists()


@pytest.mark.slow
def test_up_training_by_the_command_line(call, trained: Path, tiny, tmp_path: Path):
    """Convert, then train on in another workdir. Training in the converted folder itself is refused."""
    start, on = tmp_path / "start", tmp_path / "on"
    done = call("transformer", "convert", trained, start, "--kv-heads", 1, "--checkpoint", "best")
    assert (done.code, done.out) == (0, "")
    assert f"to train it on: --model.kv_heads 1 --train.init_from {start}" in done.err
    files = sorted(path for path in start.rglob("*") if path.is_file())
    train = ("train.py", "--config", tiny.config, "--model.kv_heads", 1)
    done = call(*train, "--workdir", start)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {start} is not a workdir of train.py: it has no config.json, but checkpoints")
    assert sorted(path for path in start.rglob("*") if path.is_file()) == files

    options = ("--train.steps", 2, "--train.peak_learning_rate", 1e-6, "--train.eval_sentences", 1)
    options += ("--data.length_buckets", 1)
    done = call(*train, "--workdir", on, "--train.init_from", start, *options)
    assert done.code == 0, done.err
    assert f"starting from the parameters of {start}/checkpoints/average" in done.err
    assert Checkpoints(on).steps() == [2] and Checkpoints(on).at(2).config.model.kv_heads == 1
    (_, before), (_, after) = transformer.load(str(start)), transformer.load(str(on))
    # Adam's first steps are about as large as the learning rate, wherever the gradient is not 0.
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
    assert all(0 < far < 1e-5 for far in jax.tree.leaves(moved))
    best = transformer.load(str(trained), "best")[1]
    key = [tree["decoder"]["layers"]["0"]["cross_attention"]["key"] for tree in (best, before)]
    np.testing.assert_allclose(key[1], key[0].mean(axis=1, keepdims=True), rtol=1e-6)
