"""Workdirs of earlier versions can be resumed, evaluated and used to translate."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from transformer.checkpoint import Checkpoints
from transformer.config import from_json
from transformer.files import MANIFEST, digest


def as_before(workdir: Path) -> None:
    """Rewrite a workdir in the format of November 2026, in which the config names neither task nor vocabulary size.

    The format was compared, file by file, with a workdir of such a version trained on the same text and seed.
    """
    for path in (workdir / "config.json", *workdir.glob("checkpoints/*/config.json")):
        values = json.loads(path.read_text())
        del values["task"], values["model"]["vocab_size"]
        path.write_text(json.dumps(values, indent=2) + "\n")
        manifest = path.parent / MANIFEST
        if manifest.exists():
            entries = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**entries, path.name: digest(path)}, indent=2))


@pytest.fixture
def old(workdir: Path) -> Path:
    as_before(workdir)
    return workdir


@pytest.mark.slow
def test_an_old_run_goes_on_to_the_same_bits(old: Path, trained: Path, tiny, tmp_path: Path, call) -> None:
    new = Path(shutil.copytree(trained, tmp_path / "new"))
    for folder in (old, new):
        done = call("train.py", "--config", tiny.config, "--workdir", folder, "--train.steps", 126)
        assert done.code == 0 and "resuming from step 120" in done.err and "model.vocab_size" not in done.err
    one, other = (Checkpoints(folder).at(126).params() for folder in (old, new))
    np.testing.assert_array_equal(one["embedding"]["table"], other["embedding"]["table"])
    config = from_json((old / "config.json").read_text())
    assert config.model.vocab_size == Checkpoints(old).at(126).config.model.vocab_size == 400
    assert Checkpoints(old).at(120).config.model.vocab_size is None


def test_an_old_run_is_evaluated_averaged_and_translates(old: Path, trained: Path, call) -> None:
    scores = [json.loads(call("evaluate.py", "--workdir", folder, "--json").out) for folder in (old, trained)]
    assert scores[0] == scores[1]
    assert call("transformer", "average", old, "--last", 2).code == 0
    for checkpoint in (120, "average"):
        model, _ = Checkpoints(old).read(checkpoint, lambda opened: (opened.model, opened.params()))
        assert model is Checkpoints(trained).at(120).model
    assert call("evaluate.py", "--workdir", old).code == 0


@pytest.mark.slow
def test_an_old_run_is_a_start_for_another(old: Path, tiny, tmp_path: Path, call) -> None:
    new = "--config", tiny.config, "--workdir", tmp_path / "new", "--train.init_from", old, "--train.steps", 2
    assert call("train.py", *new).code == 0
    refused = call("train.py", *new[:3], tmp_path / "other", *new[4:], "--model.vocab_size", 300)
    assert refused.code == 2 and "vocab_size" in refused.err.splitlines()[-1]
