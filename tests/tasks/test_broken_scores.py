"""Checkpoints that give non-finite scores: commands warn and count them; exit code 2 if no score is finite."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.checkpoint import AVERAGE, Checkpoints
from transformer.command_line import config_file
from transformer.config import MeshConfig
from transformer.tasks.translation import Translation
from transformer.training.sharding import make_mesh

ERROR = (
    "error: no score of {} sentences is a number: the parameters of this model are broken; choose another checkpoint"
)


def break_(params, value: float):
    return jax.tree.map(lambda x: np.full_like(x, value), params)


@pytest.fixture(scope="module")
def broken(trained: Path, tmp_path_factory) -> Path:
    """A copy of the finished run with an average whose parameters overflow. Commands use an average by default."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("scores.jsonl"))
    checkpoints = Checkpoints(folder)
    files = {name: checkpoints.at(120).file(name) for name in ("config.json", "tokenizer.model")}
    progress = {"step": 120, "vocab_size": checkpoints.at(120).progress["vocab_size"], "averaged_steps": [120]}
    checkpoints.save(AVERAGE, {"params": break_(checkpoints.at(120).params(), 1e30)}, progress=progress, files=files)
    checkpoints.wait()
    return folder


@pytest.fixture
def given(monkeypatch) -> Callable[[str], None]:
    """`given(text)`: give standard input this text."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_translate_ends_with_2_and_as_many_lines(call, broken: Path, given, tmp_path: Path) -> None:
    given("the red cat\n\nsees\n")
    done = call("transformer", "translate", broken)
    assert (done.code, done.out) == (2, "\n\n\n")
    warning, error = done.err.splitlines()[-2:]
    assert warning.startswith("warning: line 1: the model's scores are not finite") and "2 of 3 lines" in warning
    assert error.startswith(ERROR.format(2))
    given('{"source": "the red cat"}\n')
    done = call("transformer", "translate", broken, "--jsonl")
    assert (done.code, json.loads(done.out)["score"]) == (2, None)
    (tmp_path / "in").write_text("the red cat\n")
    done = call("transformer", "translate", broken, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert (done.code, (tmp_path / "out").read_text()) == (2, "\n")
    # Blank lines have no score, so they are no error; and another checkpoint translates.
    given("\n\n")
    assert call("transformer", "translate", broken)[:2] == (0, "\n\n")
    given("red cat\n")
    done = call("transformer", "translate", broken, "--checkpoint", "last")
    assert done.code == 0


def test_score_ends_with_2_and_null(call, broken: Path, given) -> None:
    given('{"source": "red", "target": "rot"}\n')
    done = call("transformer", "score", broken)
    record = json.loads(done.out)
    assert done.code == 2 and record["score"] is None and set(record["log_probs"]) == {None}
    assert done.err.splitlines()[-1].startswith(ERROR.format(1))


def test_evaluate_ends_with_2_and_stores_nothing(call, broken: Path) -> None:
    done = call("evaluate.py", "--workdir", broken)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(ERROR.format(20).replace("error: ", f"error: {broken}: "))
    assert not (broken / "scores.jsonl").exists()
    # A comparison with it fails, too.
    done = call("evaluate.py", "--workdir", broken, "--checkpoint", "last", "--against", broken)
    assert (done.code, done.out) == (2, "")


def test_evaluate_counts_those_of_some_sentences(call, workdir: Path, monkeypatch) -> None:
    """The encoder's output is broken by hand for two sentences in each batch."""
    from transformer.inference import engine

    whole = engine.begin

    def begin(params, source_BS, *rest, **more):
        context, beams = whole(params, source_BS, *rest, **more)
        hurt = [m._replace(kv=jax.tree.map(lambda x: x.at[:2].set(jnp.nan), m.kv)) for m in context.memories]
        return context._replace(memories=tuple(hurt)), beams

    begin.lower = whole.lower
    monkeypatch.setattr(engine, "begin", begin)
    done = call("evaluate.py", "--workdir", workdir, "--json")
    result = json.loads(done.out)
    assert done.code == 0 and 0 < result["scores_not_numbers"] < 20
    assert f"({result['scores_not_numbers']} of 20 lines)" in done.err
    assert json.loads((workdir / "scores.jsonl").read_text().splitlines()[-1])["scores_not_numbers"] > 0


def test_in_training_it_is_a_warning(trained: Path, tiny, caplog) -> None:
    """The other scores are still logged."""
    task = Translation.build(config_file(tiny.config), str(trained))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    scores = dict(task.evaluate(break_(Checkpoints(trained).at(120).params(), np.nan), mesh, 120))
    assert scores["dev_bleu"] == 0 and "dev_chrf" in scores
    assert any("scores are not finite" in line and "20 of 20 lines" in line for line in caplog.messages)


def test_an_average_without_scores_ends_with_2(call, broken: Path, tmp_path: Path) -> None:
    """The parameters and their average are finite, the scores are not. Results are printed before the error."""
    folder = Path(shutil.copytree(broken, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints" / "average")
    checkpoints = Checkpoints(folder)
    there = checkpoints.at(120)
    files = {name: there.file(name) for name in ("config.json", "tokenizer.model")}
    items, progress = {"params": break_(there.params(), 1e30)}, there.progress
    shutil.rmtree(there.path)
    checkpoints.save(120, items, progress=progress, files=files)
    checkpoints.wait()
    done = call("transformer", "average", folder, "--last", 1)
    assert done.code == 2 and done.out.splitlines()[0] == "averaged 1 checkpoints: 120"
    assert [line.split(":")[0] for line in done.out.splitlines()[1:]] == [
        "BLEU on dev.en, before, step 120",
        "BLEU on dev.en, after",
    ]
    assert done.err.splitlines()[-1].startswith(f"error: {folder / 'checkpoints/average'}: no score of 20 sentences is")


@pytest.fixture(scope="module")
def no_numbers(broken: Path, tmp_path_factory) -> Path:
    """A workdir with an average of NaNs, which no command would write."""
    folder = Path(shutil.copytree(broken, tmp_path_factory.mktemp("nan") / "run"))
    checkpoints = Checkpoints(folder)
    there = checkpoints.at(AVERAGE)
    files = {name: there.file(name) for name in ("config.json", "tokenizer.model")}
    one = jax.tree.map(np.asarray, there.params())
    one["embedding"]["table"] = (
        one["embedding"]["table"] * np.where(np.arange(len(one["embedding"]["table"])) == 7, np.nan, 0)[:, None]
    )
    checkpoints.save(AVERAGE, {"params": one}, progress=there.progress, files=files)
    checkpoints.wait()
    return folder


def test_parameters_that_are_no_numbers_are_not_handed_on(call, no_numbers: Path, tiny, tmp_path: Path) -> None:
    told = f"{no_numbers / 'checkpoints/average'} holds parameters that are not finite"
    for arguments in (
        ("convert", no_numbers, tmp_path / "out", "--kv-heads", 1),
        ("export", no_numbers, tmp_path / "out", "--to", "hf-marian"),
    ):
        done = call("transformer", *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1] == f"error: {told}; choose another with --checkpoint"
        assert not (tmp_path / "out").exists()
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "run", "--train.init_from", no_numbers)
    assert done.code == 2 and not list((tmp_path / "run").glob("checkpoints/*"))
    assert done.err.splitlines()[-1] == f"error: train.init_from = {str(no_numbers)!r}: {told}"


def test_the_workdir_of_broken_scores_is_named(call, broken: Path, trained: Path) -> None:
    done = call("evaluate.py", "--workdir", trained, "--against", broken)
    assert done.code == 2 and done.err.splitlines()[-1].startswith(f"error: {broken}: no score of 20 sentences")
    assert call("evaluate.py", "--workdir", broken).err.splitlines()[-1].startswith(f"error: {broken}: no score of 20")
