import dataclasses
from pathlib import Path

import pytest

from transformer.checkpoint import Checkpoints
from transformer.config import Config, TrainConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.tasks.vocabulary import inherited, refuse_other
from transformer.tools.convert import convert


def test_another_tokenizer_than_the_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    ours, given = Tokenizer.train(["red cat " * 9, "blue dog"], vocab_size=280), tmp_path / "spm.model"
    given.write_bytes(ours.model)
    refuse_other(str(given), ours, "runs/x")
    given.write_bytes(b"others")
    told = (
        r"^data\.tokenizer = .* is not the tokenizer that runs/x was trained with, runs/x/tokenizer\.model; give that"
    )
    with pytest.raises(UserError, match=told):
        refuse_other(str(given), ours, "runs/x")
    with pytest.raises(UserError, match="cannot be read"):
        refuse_other(str(tmp_path), ours, "runs/x")


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"red", b"rex"))
    assert path.read_bytes() != content


def resumed(workdir: Path) -> bytes:
    return inherited(Config(), str(workdir)).model


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_without_the_digest_resumes_with_the_tokenizer_of_its_checkpoint(workdir, caplog, whole: bool) -> None:
    path = workdir / "tokenizer.model"
    model = path.read_bytes()
    (workdir / "tokenizer.sha256").unlink()
    if not whole:
        damage(path)
    assert resumed(workdir) == model
    told = [] if whole else [f"{path} is not as it was written; taking the one that checkpoint 120 holds"]
    assert caplog.messages == told
    path.unlink()
    assert resumed(workdir) == model
    assert caplog.messages[len(told) :] == [f"{path} is missing; taking the one that checkpoint 120 holds"]


def test_without_a_whole_tokenizer_a_run_does_not_resume(workdir: Path) -> None:
    (workdir / "tokenizer.sha256").unlink()
    for path in (workdir / "checkpoints").glob("*/tokenizer.model"):
        damage(path)
    with pytest.raises(
        UserError, match=r"tokenizer\.model is not as it was written, and no checkpoint is whole; restore"
    ):
        resumed(workdir)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.sha256"])
def test_a_folder_instead_of_the_tokenizer_is_named(workdir: Path, name: str) -> None:
    (workdir / name).unlink()
    (workdir / name).mkdir()
    with pytest.raises(UserError, match=rf"^{workdir / name} cannot be read \(Is a directory\); restore a copy"):
        resumed(workdir)


def test_a_start_takes_the_tokenizer_of_the_checkpoint_that_it_takes(workdir: Path, tmp_path: Path) -> None:
    model = (workdir / "tokenizer.model").read_bytes()
    opened = Checkpoints(workdir).open()
    convert(str(workdir), str(tmp_path / "fewer"), dataclasses.replace(opened.config.model, kv_heads=1))
    for start in (workdir, tmp_path / "fewer"):
        damage(start / "tokenizer.model")
        assert inherited(Config(train=TrainConfig(init_from=str(start))), None).model == model
