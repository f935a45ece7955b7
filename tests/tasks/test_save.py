"""`transformer.save`: models that another program has trained are read like those of train.py."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import Config, DecodeConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.training.workdir import hold

DECODE = DecodeConfig(beam_size=2, max_source_length=30, max_extra_length=5)


@pytest.fixture
def parts(trained: Path):
    """Model, parameters and tokenizer of the finished run, as another program would have them."""
    model, params = transformer.load(str(trained), "last")
    return model, jax.tree.map(np.asarray, params), Tokenizer.load(trained / "tokenizer.model")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_commands_read_what_was_saved(call, parts, trained: Path, tiny, tmp_path: Path) -> None:
    model, params, tokenizer = parts
    folder = tmp_path / "own"
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    transformer.save(folder, model, half, tokenizer, step=10, config=Config(decode=DECODE))
    transformer.save(folder, model, params, trained / "tokenizer.model", step=20, config=Config(decode=DECODE))
    loaded = transformer.load(folder, 20)
    model_again, params_again = loaded
    assert model_again is model and loaded.config.decode == DECODE and loaded.config.model == model.config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    assert loaded.tokenizer.sha256 == tokenizer.sha256
    line = tokenizer.sha256 + "  tokenizer.model\n"
    assert (folder / "tokenizer.sha256").read_text() == line
    assert json.loads((folder / "config.json").read_text())["model"]["vocab_size"] == tokenizer.vocab_size

    source, reference = tiny.folder / "test.en", tiny.folder / "test.de"
    expected = transformer.Translator.load(str(trained), "last").translate(source.read_text().splitlines())
    found = transformer.Translator.load(str(folder), "last").translate(source.read_text().splitlines())
    assert found == expected
    out = tmp_path / "out.de"
    assert call("transformer", "translate", folder, "--input", source, "--output", out, "--checkpoint", "20").code == 0
    assert out.read_text().splitlines() == expected
    averaged = call("transformer", "average", folder, "--last", "2")
    assert averaged.code == 0 and "averaged 2 checkpoints: 10, 20" in averaged.out
    scored = call("evaluate.py", "--workdir", folder, "--source", source, "--reference", reference, "--json")
    assert scored.code == 0 and json.loads(scored.out)["checkpoint"] == "average"
    pytest.importorskip("safetensors", reason="needs safetensors")
    assert call("transformer", "export", folder, tmp_path / "hf", "--to", "hf-marian").code == 0
    assert (tmp_path / "hf" / "model.safetensors").exists()


def test_train_refuses_the_workdir_and_can_start_from_it(call, parts, tiny, tmp_path: Path) -> None:
    model, params, tokenizer = parts
    transformer.save(tmp_path / "own", model, params, tokenizer, step=5)
    before = content(tmp_path / "own")
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "own")
    assert done.code == 2 and "was trained with another config" in done.err
    assert {name: text for name, text in content(tmp_path / "own").items() if name != ".lock"} == {
        name: text for name, text in before.items() if name != ".lock"
    }
    started = ["--config", tiny.config, "--workdir", tmp_path / "next", "--train.init_from", tmp_path / "own"]
    assert call("train.py", *started, "--train.steps", "2", "--train.eval_every", "100").code == 0


def refused(*args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        transformer.save(*args, **kwargs)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_one_line_and_write_nothing(parts, tmp_path: Path) -> None:
    model, params, tokenizer = parts
    folder = tmp_path / "own"
    other = transformer.build(dataclasses.replace(model.config, d_ff=8))
    larger = transformer.build(dataclasses.replace(model.config, vocab_size=model.config.vocab_size + 1))
    table = {"embedding": {"table": params["embedding"]["table"] * np.nan}}
    assert "encoder/layers/0/feed_forward/w1 has shape (32, 64), not (32, 8)" in refused(
        folder, other, params, tokenizer
    )
    assert f"the tokenizer has {tokenizer.vocab_size} pieces" in refused(folder, larger, params, tokenizer)
    assert "not finite" in refused(folder, model, {**params, **table}, tokenizer)
    assert "traced" in refused_in_jit(folder, model, params, tokenizer)
    assert "step = -1" in refused(folder, model, params, tokenizer, step=-1)
    assert "give what `transformer.build` returns" in refused(folder, model.config, params, tokenizer)
    assert "cannot be read" in refused(folder, model, params, tmp_path / "missing.model")
    wrong = dataclasses.replace(DECODE, beam_size=0)
    assert "decode.beam_size = 0" in refused(folder, model, params, tokenizer, config=Config(decode=wrong))
    assert not folder.exists()


def test_arguments_of_wrong_types_are_named(parts, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, params, tokenizer = parts
    assert refused(b"x", model, params, tokenizer) == "the workdir is a bytes: give a path"
    assert refused("", model, params, tokenizer) == "the workdir is '': give the path of a folder"
    assert refused("a\0b", model, params, tokenizer) == "the workdir is 'a\\x00b': give the path of a folder"
    for wrong in (None, 3, b"x"):
        assert refused("own", model, params, wrong).startswith(f"the tokenizer is a {type(wrong).__name__}: give the p")
    for wrong in ({}, "x", DECODE, Config):
        assert refused("own", model, params, tokenizer, config=wrong).startswith("config = ")
    assert "has shape none, as a ShapeDtypeStruct" in refused("own", model, model.abstract_params, tokenizer)
    assert not list(tmp_path.iterdir())
    transformer.save("own", model, params, tokenizer, step=np.int64(7))
    assert Checkpoints("own").open().name == 7


def refused_in_jit(folder, model, params, tokenizer) -> str:
    with pytest.raises(UserError) as error:
        jax.jit(lambda params: transformer.save(folder, model, params, tokenizer))(params)
    return str(error.value)


def test_other_runs_are_never_harmed(parts, workdir: Path, tmp_path: Path) -> None:
    model, params, tokenizer = parts
    before = content(workdir)
    assert "holds a run of train.py" in refused(workdir, model, params, tokenizer, step=1_000)
    assert content(workdir) == before

    shutil.copytree(workdir, tmp_path / "seeds" / "seed-0")
    assert "holds the runs of several seeds" in refused(tmp_path / "seeds", model, params, tokenizer)
    own = tmp_path / "own"
    transformer.save(own, model, params, tokenizer, step=3)
    before = content(own)
    assert "00000003 exists; give another step" in refused(own, model, params, tokenizer, step=3)
    biased = dataclasses.replace(model.config, attention_bias=True)
    other = transformer.build(biased)
    message = refused(own, other, other.init(jax.random.key(0)), tokenizer, step=4)
    assert "holds another model: model.attention_bias is False there, True now" in message
    lines = [" ".join(words) for words in zip("abcdefgh" * 9, "ijklmnop" * 9, strict=True)]
    tiny_pieces = Tokenizer.train(lines, vocab_size=290)
    small = transformer.build(dataclasses.replace(model.config, vocab_size=290))
    assert "another model" in refused(own, small, small.init(jax.random.key(0)), tiny_pieces, step=4)
    with hold(str(own)):
        assert "another run trains there" in refused(own, model, params, tokenizer, step=4)
    assert content(own) == before

    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    assert "holds config.json of another run" in refused(begun, model, params, tokenizer)
    assert [path.name for path in begun.iterdir() if path.name != ".lock"] == ["config.json"]


def test_a_failed_save_can_be_repeated(parts, tmp_path: Path, monkeypatch) -> None:
    """Killed after the checkpoint was written, before the files of the workdir."""
    from transformer.tasks import saving

    model, params, tokenizer = parts

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            transformer.save(tmp_path / "own", model, params, tokenizer, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            transformer.save(tmp_path / "own", model, params, tokenizer, step=2)
    transformer.save(tmp_path / "own", model, params, tokenizer, step=2)
    assert Checkpoints(tmp_path / "own").steps() == [1, 2]
    assert (tmp_path / "own" / "config.json").exists()
