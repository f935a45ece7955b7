from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu
from runs import leftovers

from transformer.checkpoint import Checkpoints
from transformer.command_line import config_file
from transformer.config import AttentionConfig, MaskedConfig, ModelConfig, TrainConfig, UserError, conflicts, from_json
from transformer.data import labels, linearised, marian, vocabularies, wordpiece
from transformer.data.batching import Batches
from transformer.data.tokenizer import Tokenizer
from transformer.jobs import train
from transformer.judging import Judge
from transformer.model import build
from transformer.tasks import translation
from transformer.tasks.sets import read_set
from transformer.tasks.translation import Translation
from transformer.training import fit, loop, start
from transformer.training import step as step_module
from transformer.training.feed import Feed
from transformer.training.fit import accumulation, memory_of_an_update
from transformer.training.optimizer import optimizer
from transformer.training.sharding import make_mesh
from transformer.training.step import program
from transformer.training.warm_start import initial, other_fields, starting_point
from transformer.training.workdir import config_of, hold, refuse_other_config


@pytest.fixture
def run(tiny, caplog) -> Callable[..., list[str]]:
    """`run(workdir, "--train.steps", 50)`: run train.py in this process. Returns its log lines; errors pass through. If
    an option is given twice, the last one counts."""

    def run(workdir: Path, *arguments: object) -> list[str]:
        caplog.clear()
        caplog.set_level(logging.INFO, "transformer")
        options: dict[str, list[str]] = {}
        for argument in map(str, arguments):
            if argument.startswith("--"):
                options[argument] = name = [argument]
            else:
                name.append(argument)
        train(["--config", tiny.config, "--workdir", str(workdir), *itertools.chain(*options.values())])
        return list(caplog.messages)

    return run


def entries(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """Each file below a folder with a digest of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def short(*more: object) -> tuple[object, ...]:
    """Options of a run with few updates and few translations."""
    return "--train.steps", 6, "--train.checkpoint_every", 3, "--train.log_every", 2, "--train.eval_sentences", 2, *more


# ---- A finished run -------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(trained: Path, tiny) -> None:
    given = config_file(tiny.config)
    config = dataclasses.replace(given, model=given.model.with_vocabulary(400))
    assert from_json((trained / "config.json").read_text()) == config
    pieces = Tokenizer.load(trained / "tokenizer.model")
    assert (trained / "tokenizer.sha256").read_text() == f"{pieces.sha256}  tokenizer.model\n"
    # The last three and the best, which here is one of them.
    checkpoints = Checkpoints(trained)
    assert checkpoints.steps() == [80, 100, 120]
    assert all(checkpoints.at(step).damage() is None for step in checkpoints.steps())
    for step in checkpoints.steps():
        assert (trained / f"checkpoints/{step:08d}/tokenizer.model").read_bytes() == pieces.model
        assert checkpoints.at(step).config == config
    assert list((trained / "tensorboard").iterdir())


def test_the_log(trained: Path) -> None:
    training = [entry for entry in entries(trained) if "loss" in entry]
    scores = [entry for entry in entries(trained) if "dev_loss" in entry]
    assert [entry["step"] for entry in training] == [*range(7, 120, 7), 120]
    assert [entry["step"] for entry in scores] == [40, 80, 120]
    steps = [entry["step"] for entry in entries(trained)]
    assert steps == sorted(set(steps))  # one entry per step, also if log and evaluation are both due
    assert set(training[0]) == {
        "step",
        "time",
        "loss",
        "nll",
        "gradient_norm",
        "tokens_per_second",
        "learning_rate",
        "epoch",
    }
    of_scores = {"dev_loss", "dev_loss_exchanged", "dev_perplexity", "dev_bleu", "dev_chrf", "dev_bleu_signature"}
    of_scores |= {"dev_chrf_signature"}
    assert set(scores[0]) == {"step", "time", *of_scores}
    assert set(scores[-1]) == {*training[0], *of_scores}
    assert training[-1]["loss"] < training[0]["loss"] - 2  # it learns
    assert scores[-1]["dev_loss"] < scores[0]["dev_loss"]
    # 20 updates of warmup to 0.01, then inverse square root decay.
    assert training[0]["learning_rate"] == pytest.approx(0.01 * 7 / 20)
    assert training[-1]["learning_rate"] == pytest.approx(0.01 * (20 / 120) ** 0.5)
    assert [entry["epoch"] for entry in training] == [(step - 1) // 9 for step in [*range(7, 120, 7), 120]]


def test_a_score_is_stored_with_the_checkpoint_that_it_is_of(trained: Path) -> None:
    checkpoints = Checkpoints(trained)
    scores = {entry["step"]: entry["dev_bleu"] for entry in entries(trained) if "dev_bleu" in entry}
    assert checkpoints.at(80).progress["dev_bleu"] == scores[80]
    signature = checkpoints.at(80).progress["dev_bleu_signature"]
    assert signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert {entry["dev_bleu_signature"] for entry in entries(trained) if "dev_bleu" in entry} == {signature}
    assert "dev_bleu_signature" not in checkpoints.at(100).progress
    assert checkpoints.at(100).progress["dev_bleu"] is None
    assert checkpoints.at(100).progress["best"]["dev_bleu"] == max(scores[40], scores[80])
    assert checkpoints.at(120).progress["dev_bleu"] == scores[120]
    assert checkpoints.best() == max(scores, key=scores.get)


def test_the_same_command_again_changes_nothing(workdir: Path, run) -> None:
    before = contents(workdir)
    told = run(workdir)
    assert contents(workdir) == before
    assert any("is trained already, to step 120; raise train.steps" in line for line in told)
    # A smaller number of steps changes nothing either.
    told = run(workdir, "--train.steps", 60)
    assert any("is trained already, to step 120" in line for line in told)
    assert Checkpoints(workdir).steps() == [80, 100, 120]


# ---- Resuming -------------------------------------------------------------------------------------------------------


def test_another_config_is_refused_and_nothing_touched(workdir: Path, run) -> None:
    before = contents(workdir)
    with pytest.raises(UserError) as error:
        run(workdir, "--train.seed", 3, "--model.dropout", 0.2, "--train.steps", 130)
    assert "train.seed is 0 there, 3 now" in str(error.value)
    assert "model.dropout is 0.1 there, 0.2 now" in str(error.value)
    assert "train.steps" not in str(error.value)  # this option may change
    assert "\n" not in str(error.value)
    assert contents(workdir) == before
    # Also if only the checkpoints have the config.
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"train.seed is 0 there, 3 now"):
        run(workdir, "--train.seed", 3)


def test_other_text_is_refused(workdir: Path, run, monkeypatch) -> None:
    from transformer.tasks.translation import Translation

    (workdir / "sets/dev.reference").write_text("what dev was then\n")
    before = contents(workdir)
    monkeypatch.setattr(Translation, "data_digest", lambda self: "of other text")
    with pytest.raises(UserError, match=f"the training text is not what {workdir} was trained on"):
        run(workdir, "--train.steps", 130)
    assert contents(workdir) == before


@pytest.mark.slow
def test_other_dev_sentences_start_the_best_score_anew(workdir: Path, run, monkeypatch) -> None:
    from transformer.tasks.translation import Translation

    best = Checkpoints(workdir).at(120).progress["best"]["dev_bleu"]
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", best / 2)]))
    more = ("--train.eval_every", 1, "--train.patience", 4)
    told = run(workdir, *more, "--train.steps", 121)
    assert not any("scores cannot be compared" in line for line in told)
    progress = Checkpoints(workdir).at(121).progress
    assert (progress["best"]["dev_bleu"], progress["evaluations_without_better"]) == (best, 1)
    told = run(workdir, *more, "--train.steps", 122, "--train.eval_sentences", 7)
    assert (
        len([line for line in told if "cannot be compared with those before step 121, because the development" in line])
        == 1
    )
    progress = Checkpoints(workdir).at(122).progress
    assert (progress["best"]["dev_bleu"], progress["evaluations_without_better"]) == (best / 2, 0)
    assert Checkpoints(workdir).best() == 122
    told = run(workdir, *more, "--train.steps", 123, "--train.eval_sentences", 7)
    assert not any("scores cannot be compared" in line for line in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--decode.max_length", 3), "decode.max_length is 3 instead of None"),
        (("--evaluate.metric", "loss"), "dev_loss counts first instead of dev_bleu"),
        (("--evaluate.bleu_tokenize", "char"), "bleu_tokenize is char instead of 13a"),
        (("--data.languages", "en", "th"), "bleu_tokenize is char instead of 13a"),
    ],
)
def test_other_judging_starts_the_best_score_anew(workdir: Path, run, monkeypatch, option, told: str) -> None:
    from transformer.tasks.translation import Translation

    found = iter([("dev_bleu", 1.0), ("dev_chrf", 1.0), ("dev_loss", 9.0)] for _ in range(9))
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter(next(found)))
    more = ("--train.eval_every", 1, "--train.patience", 1, *option)
    said = run(workdir, *more, "--train.steps", 121)
    expected = f"scores cannot be compared with those before step 120, because {told}; the best checkpoint and"
    assert len([line for line in said if line.startswith(expected)]) == 1
    checkpoints = Checkpoints(workdir)
    progress = checkpoints.at(121).progress
    assert (progress["best"]["dev_loss"], progress["evaluations_without_better"]) == (9.0, 0)
    assert checkpoints.best() == checkpoints.choose() == 121
    # The same scores again are not better, and patience counts from there.
    said = run(workdir, *more, "--train.steps", 123)
    assert not any("scores cannot be compared" in line for line in said)
    assert any("step 122: nothing better than dev_" in line for line in said)


@pytest.mark.slow
def test_zeros_neither_choose_nor_stop(tmp_path: Path, run, monkeypatch) -> None:
    """BLEU is 0 if its tokeniser does not fit the language. Then chrF decides, then dev loss."""
    from transformer.tasks.translation import Translation

    values = iter([(0.0, 64.8, 2.0), (0.0, 98.1, 1.0), (0.0, 99.4, 1.0), (0.0, 99.4, 0.9), (0.0, 99.4, 0.9)] * 2)
    names = ("dev_bleu", "dev_chrf", "dev_loss")
    monkeypatch.setattr(Translation, "evaluate", lambda *_: zip(names, next(values), strict=True))
    every = ("--train.steps", 30, "--train.eval_every", 2, "--train.checkpoint_every", 100, "--train.patience", 1)
    told = run(tmp_path / "run", *every)
    stopped = "step 10: nothing better than dev_bleu 0, dev_chrf 99.4, dev_loss 0.9 in 1 evaluations, stopping early"
    assert stopped in told
    assert Checkpoints(tmp_path / "run").best() == 8


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(workdir: Path, run, monkeypatch) -> None:
    """Its checkpoints hold only dev BLEU; how they were scored follows from their config and signature."""
    import hashlib

    from transformer.tasks.translation import Translation

    for folder in (workdir / "checkpoints").iterdir():
        progress, manifest = (json.loads((folder / name).read_text()) for name in ("progress.json", "manifest.json"))
        config = json.loads((folder / "config.json").read_text())
        best = progress.pop("best")
        progress["best_bleu"] = best and best["dev_bleu"]
        for name in ("judged", "scored_with", "dev_chrf", "dev_loss"):
            del progress[name]
        del config["evaluate"]
        for name, content in (("progress.json", progress), ("config.json", config)):
            (folder / name).write_text(json.dumps(content))
            content = (folder / name).read_bytes()
            manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (workdir / "config.json").write_text(json.dumps(config))
    checkpoints = Checkpoints(workdir)
    best = checkpoints.at(120).progress["best_bleu"]
    before = checkpoints.best()
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", best / 2), ("dev_chrf", 99.0)]))
    told = run(workdir, "--train.eval_every", 1, "--train.steps", 121)
    assert not any("scores cannot be compared" in line for line in told)
    progress = checkpoints.at(121).progress
    assert (progress["best"], progress["evaluations_without_better"]) == ({"dev_bleu": best}, 1)
    assert checkpoints.best() == before
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", best), ("dev_chrf", 99.0)]))
    run(workdir, "--train.eval_every", 1, "--train.steps", 122)
    assert checkpoints.best() == 122  # equal in BLEU, and better in the other scores
    told = run(workdir, "--train.eval_every", 1, "--train.steps", 123, "--decode.max_length", 3)
    assert any("decode.max_length is 3 instead of None" in line for line in told)


def test_doubts_about_dev_and_test_are_warned_of(tiny, tmp_path: Path) -> None:
    config = config_file(tiny.config)
    (tmp_path / "dev.de").write_text("\n" * 20)
    folder = tiny.folder
    data = dataclasses.replace(
        config.data,
        dev_target=str(tmp_path / "dev.de"),
        test_source=f"{folder}/train.en",
        test_target=f"{folder}/train.de",
    )
    assert Translation.build(config).text_doubts() == []
    blank, trained = Translation.build(dataclasses.replace(config, data=data)).text_doubts()
    assert blank.startswith("dev.en: 20 of 20 references are blank")
    assert trained.startswith("train.en: 400 of 400 pairs of the test set are in the training text, too")


def test_the_digest_of_dev_follows_its_text(tiny, tmp_path: Path) -> None:
    from transformer.data.text import Corpora, Parallel
    from transformer.tasks.translation import Translation

    def judged_on(text: str, count: int | None = None) -> dict[str, object]:
        for side in ("en", "de"):
            (tmp_path / f"dev.{side}").write_text(text)
        dev = Parallel(str(tmp_path / "dev.en"), str(tmp_path / "dev.de"))
        train = dataclasses.replace(config.train, eval_sentences=count)
        one = dataclasses.replace(config, train=train)
        return Translation(one, pieces, Corpora((), dev, None, "dev", "")).judged_on()

    config, pieces = config_file(tiny.config), Tokenizer.train(["red cat " * 9, "blue dog"], vocab_size=280)
    assert judged_on("red cat\n") == judged_on("red cat") != judged_on("red dog\n")
    # BLEU is of the first sentences, and the loss of all.
    assert judged_on("red cat\nblue dog\n", 1) != judged_on("red cat\nred dog\n", 1)


def test_a_second_run_in_the_same_workdir_is_refused(workdir: Path, run) -> None:
    before = contents(workdir)
    with hold(str(workdir)):
        with pytest.raises(UserError, match=f"^{workdir}: another run trains there; stop it first, or use another"):
            run(workdir, "--train.steps", 130)
        assert read_set(str(workdir))  # reading needs no lock
    assert contents(workdir) == before
    assert any("is trained already" in line for line in run(workdir))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"config.json": '{"model_type": "marian"}'},
            "holds an exported model; use another --workdir. To start from it: ",
        ),
        ({"config.json": '{"modell": {}}'}, "config.json: unknown field 'modell'"),
        ({"config.json": "{"}, "config.json: not valid JSON"),
        ({"config.json": '{"train": {"seed": 7}}'}, "train.seed is 7 there, 0 now"),
        ({"tokenizer.model": "pieces", "metrics.jsonl": "{}\n"}, "but metrics.jsonl, tokenizer.model, which training"),
        ({"checkpoints/00000003/weights": "w"}, "it has no config.json, but checkpoints, which training would"),
        ({"sets/dev.source": "s"}, "it has no config.json, but sets, which training would overwrite; use another"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_nothing_touched(tmp_path: Path, run, files, told) -> None:
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)
    before = contents(tmp_path / "mine")
    with pytest.raises(UserError) as error:
        run(tmp_path / "mine", *short())
    assert told in str(error.value)
    assert "use another --workdir" in str(error.value).lower()
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize(
    "name", sorted({*vocabularies.FILES, *wordpiece.FILES, marian.FILE, labels.FILE, linearised.FILE})
)
def test_a_file_that_some_task_would_overwrite_is_kept(tmp_path: Path, tiny, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"no config.json, but {name}, which training would overwrite"):
        refuse_other_config(config_file(tiny.config), str(tmp_path))


def test_damaged_checkpoints_only_are_no_reason_to_start_anew(workdir: Path, run) -> None:
    for step in Checkpoints(workdir).steps():
        (workdir / f"checkpoints/{step:08d}/tokenizer.model").write_bytes(b"other pieces")
    before = contents(workdir)
    with pytest.raises(
        UserError, match=r"^all 3 checkpoints in .* are damaged or of another run; nothing was changed there"
    ):
        run(workdir, "--train.steps", 130)
    assert contents(workdir) == before


@pytest.mark.parametrize("name", ["checkpoints", "sets", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_told(workdir: Path, run, call, name: str) -> None:
    shutil.rmtree(workdir / name)
    (workdir / name).write_text("mine")
    before = contents(workdir)
    told = f"{name} is a file, but training makes a folder there; move the file away|no complete checkpoint is in"
    for more in ((), ("--dry-run",)):
        with pytest.raises(UserError, match=told):
            run(workdir, *more)
        assert contents(workdir) == before
    if name == "checkpoints":
        assert "no complete checkpoint there" in call("evaluate.py", "--workdir", workdir).err


def test_a_folder_in_the_place_of_a_set_is_told(workdir: Path, run) -> None:
    (workdir / "sets/dev.source").unlink()
    (workdir / "sets/dev.source").mkdir()
    with pytest.raises(UserError, match=r"sets/dev\.source cannot be written \(Is a directory\)"):
        run(workdir, "--train.steps", 121)


def test_languages_of_own_text_may_be_named_later(workdir: Path, tiny) -> None:
    values = json.loads((workdir / "config.json").read_text())
    values["data"]["languages"] = ["en", "de"]
    (workdir / "config.json").write_text(json.dumps(values))
    refuse_other_config(config_file(tiny.config), str(workdir))
    values["data"]["corpus"] = "phrases"
    old = from_json(json.dumps(values))
    new = dataclasses.replace(old, data=dataclasses.replace(old.data, languages=None))
    assert conflicts(old, new) == {"data.languages": (("en", "de"), None)}


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("arguments", [("--workdir", "/sys/kernel"), ("--workdir", "/proc/nowhere/run")])
def test_a_workdir_that_cannot_be_written_to_is_told_in_one_line(call, tiny, arguments) -> None:
    done = call("train.py", "--config", tiny.config, *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: --workdir {arguments[1]}: ")
    assert done.err.endswith("; name a folder that can be written\n")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("named", ["data.cache_dir", "TRANSFORMER_CACHE"])
def test_a_cache_that_cannot_be_written_to_is_told_in_one_line(call, tiny, tmp_path, monkeypatch, named: str) -> None:
    if named == "TRANSFORMER_CACHE":
        monkeypatch.setenv(named, "/proc/nowhere")
        more = ()
    else:
        more = ("--data.cache_dir", "/proc/nowhere")
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "run", *more)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: /proc/nowhere: ")
    assert f"the cache in /proc/nowhere must be writable and have room: mend it, or set {named} to another" in done.err
    assert not (tmp_path / "run").exists()
    monkeypatch.chdir(tmp_path)
    for wrong in ("gs://x", "foo://x", "a\0b"):
        done = call("train.py", "--config", tiny.config, "--workdir", "run", "--data.cache_dir", wrong)
        assert (done.code, done.err) == (2, f"error: data.cache_dir = {wrong!r}: the cache must be a local folder\n")
    assert list(tmp_path.iterdir()) == []


def test_what_may_change_is_told_and_training_goes_on(workdir: Path, run) -> None:
    before = entries(workdir)
    told = run(
        workdir,
        *("--train.steps", 124, "--train.checkpoint_every", 2, "--train.keep_last", 2, "--train.eval_sentences", 2),
        *("--decode.beam_size", 1),
    )
    assert "resuming with train.steps changed from 120 to 124" in told
    assert "resuming with train.checkpoint_every changed from 25 to 2" in told
    assert "resuming with decode.beam_size changed from 2 to 1" in told
    assert "resuming from step 120" in told
    best = Checkpoints(workdir).best()
    assert Checkpoints(workdir).steps() == sorted({best, 122, 124})
    assert Checkpoints(workdir).at(124).config.decode.beam_size == 1
    after = entries(workdir)
    assert after[: len(before)] == before
    assert [entry["step"] for entry in after[len(before) :]] == [124]
    # The parameters are still trained ones.
    assert after[-1]["loss"] < before[0]["loss"] - 2


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_afresh(tmp_path: Path, run, trained: Path) -> None:
    workdir = tmp_path / "run"
    (workdir / "checkpoints/00000003").mkdir(parents=True)
    shutil.copy(trained / "config.json", workdir)
    lines = (trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 50))
    told = run(workdir, *short())
    assert not any("resuming" in line for line in told)
    assert Checkpoints(workdir).steps() == [3, 6]
    assert [entry["step"] for entry in entries(workdir)] == [2, 4, 6]
    # The first updates do not depend on later ones.
    assert entries(workdir)[2]["loss"] < entries(workdir)[0]["loss"]


@pytest.mark.slow
def test_a_workdir_may_have_any_name(tmp_path: Path, run) -> None:
    workdir = tmp_path / "run [1] *?"
    run(workdir, *short())
    told = run(workdir, *short("--train.steps", 8))
    assert "resuming from step 6" in told
    assert (Checkpoints(workdir).steps(), leftovers(workdir)) == ([3, 6, 8], [])


def test_a_run_writes_nothing_to_a_folder_that_is_no_longer_its_own(tmp_path: Path, run, trained, monkeypatch) -> None:
    """Somebody removes the workdir, and another run trains there."""
    workdir, show = tmp_path / "run", loop.Display.show

    def replaced(display, step: int, *given) -> None:
        show(display, step, *given)
        if step == 4:
            shutil.rmtree(workdir)
            shutil.copytree(trained, workdir)

    monkeypatch.setattr(loop.Display, "show", replaced)
    with pytest.raises(UserError, match=f"^{workdir} is no longer the folder that this run began in: it was removed"):
        run(workdir, *short("--train.keep_last", 1, "--train.checkpoint_every", 6))
    assert contents(workdir) == contents(trained)


@pytest.mark.parametrize("what", ["remembered", "logged"])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path: Path, call, tiny, workdir, what: str) -> None:
    (workdir / "checkpoints").rename(tmp_path / "moved")
    if what == "logged":  # by an earlier version
        (workdir / ".saved").unlink()
    before = contents(workdir)
    done = call("train.py", "--config", tiny.config, "--workdir", workdir)
    told = "checkpoint 00000120 was saved" if what == "remembered" else f"{workdir / 'metrics.jsonl'} reaches step 120"
    assert done.code == 2
    assert f"error: {workdir}: {told}, but no complete checkpoint is in {workdir / 'checkpoints'}; bring" in done.err
    assert contents(workdir) == before


def test_the_first_file_of_a_run_says_whose_the_folder_is(tmp_path: Path, run, monkeypatch, tiny) -> None:
    class Killed(BaseException):
        pass

    replace = start.replace

    def last(path, content: bytes) -> None:
        replace(path, content)
        raise Killed

    monkeypatch.setattr(start, "replace", last)
    with pytest.raises(Killed):
        run(tmp_path / "run", *short())
    assert set(contents(tmp_path / "run")) == {".lock", "config.json"}
    refuse_other_config(config_file(tiny.config), str(tmp_path / "run"))  # so the same command is accepted


def test_patience_stops_early_and_stays_stopped(tmp_path: Path, run, monkeypatch) -> None:
    from transformer.tasks.translation import Translation

    scores = iter([3.0, 5.0, 5.0, 4.0, 4.5, 9.0])
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", next(scores))]))
    every = ("--train.steps", 30, "--train.eval_every", 2, "--train.checkpoint_every", 100, "--train.patience", 2)
    told = run(tmp_path / "run", *every)
    assert "step 8: nothing better than dev_bleu 5 in 2 evaluations, stopping early" in told
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == [2, 4, 8]  # each better one, and the last
    assert checkpoints.best() == checkpoints.choose() == 4
    assert checkpoints.at(8).progress["evaluations_without_better"] == 2
    # The same command does not continue training. With more patience it does, and the count continues.
    told = run(tmp_path / "run", *every)
    assert any("is trained already, to step 8; raise train.steps or train.patience" in line for line in told)
    assert checkpoints.steps() == [2, 4, 8]
    run(tmp_path / "run", *every[:-1], 4, "--train.steps", 12)
    assert checkpoints.steps() == [4, 8, 12]  # none at 10, where 4.5 was not better; the last three of the others
    assert (
        checkpoints.at(12).progress["best"]["dev_bleu"],
        checkpoints.at(12).progress["evaluations_without_better"],
    ) == (
        9.0,
        0,
    )


@pytest.mark.slow
def test_a_run_stops_at_a_score_and_stays_stopped(tmp_path: Path, run, monkeypatch) -> None:
    from transformer.tasks.translation import Translation

    scores = iter([3.0, 5.0, 4.0, 7.0])
    monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", next(scores))]))
    every = ("--train.steps", 8, "--train.eval_every", 2, "--train.checkpoint_every", 100)
    told = run(tmp_path / "run", *every, "--train.stop_at", 5)
    assert "step 4: dev_bleu has reached train.stop_at = 5, stopping early" in told
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == [2, 4]
    told = run(tmp_path / "run", *every, "--train.stop_at", 5)
    assert any("is trained already, to step 4; raise train.steps" in line for line in told)
    run(tmp_path / "run", *every, "--train.stop_at", 6)
    assert checkpoints.steps() == [2, 4, 8]
    assert Judge([("dev_loss", "down")], {}, {"best": {"dev_loss": 2.0}}).over(None, 1.9) == ""
    assert Judge([("dev_loss", "down")], {}, {"best": {"dev_loss": 2.0}}).over(None, 2.0)


def test_without_a_dev_set_there_is_no_best(tmp_path: Path, run, tiny) -> None:
    config = Path(tiny.config).read_text().replace('dev_source=f"{folder}/dev.en",', "")
    config = config.replace('dev_target=f"{folder}/dev.de",', "")
    (tmp_path / "config.py").write_text(config)
    train(["--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run"), *map(str, short())])
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == [3, 6]
    assert checkpoints.best() is None
    assert checkpoints.choose() == 6
    assert all("dev_loss" not in entry for entry in entries(tmp_path / "run"))


# ---- Numbers that are not finite ------------------------------------------------------------------------------------


def finite(workdir: Path) -> bool:
    checkpoints = Checkpoints(workdir)
    return all(
        np.isfinite(leaf).all()
        for step in checkpoints.steps()
        for leaf in jax.tree.leaves(checkpoints.at(step).params())
    )


def test_a_loss_that_is_not_finite_stops(workdir: Path, call, tiny, monkeypatch) -> None:
    # One parameter suddenly is NaN.
    restore = start.restore

    def spoilt(*given):
        state, progress = restore(*given)
        state.params["embedding"]["table"] = state.params["embedding"]["table"].at[7, 0].set(np.nan)
        return state, progress

    monkeypatch.setattr(start, "restore", spoilt)
    command = ("train.py", "--config", tiny.config, "--workdir", workdir)
    done = call(*command, "--train.steps", 130, "--train.checkpoint_every", 1)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith("error: update 121: the loss is nan and the gradient norm nan; training stopped, ")
    good, bad = (f"{workdir}/checkpoints/{step:08}" for step in (100, 120))
    assert f"good checkpoint is {good} (no update from {bad} was finite). Lower train.peak_learning_rate" in error
    assert "Traceback" not in done.err
    assert Checkpoints(workdir).steps() == [80, 100, 120]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path, run, monkeypatch) -> None:
    # The very first update overflows, though its loss was fine.
    monkeypatch.setattr(step_module, "optimizer", lambda *given: optax.chain(optimizer(*given), optax.scale(1e30)))
    with pytest.raises(UserError) as error:
        run(tmp_path / "run", *short("--train.checkpoint_every", 1), "--train.peak_learning_rate", 1e30)
    assert str(error.value).startswith("update 1 made parameters that are not finite; training stopped, no checkpoint")
    assert Checkpoints(tmp_path / "run").steps() == []


@pytest.mark.slow
@pytest.mark.parametrize(("non_finite", "evaluated"), [("stop", False), ("rollback", False), ("stop", True)])
def test_a_checkpoint_from_which_no_update_is_finite_is_not_kept(
    tmp_path: Path, run, monkeypatch, non_finite: str, evaluated: bool
) -> None:
    """The first update makes parameters of 1e30. They are finite, but the next loss is not. Scores can't tell."""
    options = ("--train.peak_learning_rate", 1e30, "--train.warmup_steps", 1, "--train.non_finite_limit", 2)
    if evaluated:
        monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", 5.0)]))
        options += ("--train.eval_every", 1)
    with pytest.raises(UserError, match=r"^update \d: the loss is nan.*stopped, no checkpoint was saved yet. Lower"):
        run(tmp_path / "run", *short("--train.checkpoint_every", 1, *options, "--train.non_finite", non_finite))
    assert Checkpoints(tmp_path / "run").states() == []
    assert leftovers(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "averaged"), [(1, False), (2, False), (2, True)])
def test_one_more_update_shows_whether_the_end_is_good(
    tmp_path: Path, run, monkeypatch, steps: int, averaged: bool
) -> None:
    """The last update makes parameters of 1e30. There is no development set, or its scores are of a moving average."""
    rate = step_module.optimizer

    def breaks_at_the_end(*given: Any) -> optax.GradientTransformation:
        return optax.chain(rate(*given), optax.scale_by_schedule(lambda n: jnp.where(n == steps - 1, 1e30, 1.0)))

    monkeypatch.setattr(step_module, "optimizer", breaks_at_the_end)
    without = [f"--data.{name}_{side}=None" for name in ("dev", "test") for side in ("source", "target")]
    if averaged:
        monkeypatch.setattr(Translation, "evaluate", lambda *_: iter([("dev_bleu", 5.0)]))
        without = ["--train.ema_decay", 0.5]
    told = rf"^the loss is nan and the gradient norm nan from the parameters that update {steps} made; training stopped"
    with pytest.raises(UserError, match=told):
        run(tmp_path / "run", *short(), "--train.checkpoint_every", 1, "--train.steps", steps, *without)
    assert Checkpoints(tmp_path / "run").states() == list(range(1, steps))
    assert leftovers(tmp_path / "run") == []


def test_a_checkpoint_from_which_no_update_was_finite_is_not_called_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    files = {"config.json": b"{}", "tokenizer.model": b"x"}

    def told(doubtful: int | None) -> str:
        return str(loop.diverged(checkpoints, "update 9: ", doubtful)).partition("training stopped, ")[2]

    assert told(0).startswith("no checkpoint was saved yet. ")
    for step, name in ((5, 5), (8, "00000008.interrupted")):
        progress = {"step": step, "vocab_size": 20}
        checkpoints.save(name, {"params": {"x": np.ones(3)}}, progress=progress, files=files)
        checkpoints.wait()
        folder = tmp_path / "checkpoints" / (name if isinstance(name, str) else f"{name:08d}")
        assert told(None).startswith(f"the last good checkpoint is {folder}. ")
        good = f"the last good checkpoint is {tmp_path}/checkpoints/00000005" if step == 8 else "no good checkpoint was"
        assert told(step).startswith(good) and f"(no update from {folder} was finite)" in told(step)


def test_no_config_is_written_into_another_folder(tmp_path: Path, run, trained: Path, monkeypatch) -> None:
    """Another folder replaces the workdir while text is tokenised."""
    workdir, banner = tmp_path / "run", loop.banner

    def replaced(*given: Any) -> None:
        banner(*given)
        workdir.rename(tmp_path / "old")
        workdir.mkdir()

    monkeypatch.setattr(loop, "banner", replaced)
    with pytest.raises(UserError, match=f"^{workdir} is no longer the folder that this run began in"):
        run(workdir, *short())
    assert not list(workdir.iterdir())


def test_the_end_of_a_run_is_good_when_its_evaluation_is(tmp_path: Path, run, monkeypatch) -> None:
    real = Translation.evaluate
    monkeypatch.setattr(
        Translation, "evaluate", lambda *given: {**dict(real(*given)), "dev_loss": float("nan")}.items()
    )
    with pytest.raises(
        UserError, match=r"^after update 6 dev_loss is nan; training stopped, the last good .*/00000003"
    ):
        run(tmp_path / "run", *short())
    assert Checkpoints(tmp_path / "run").states() == [3]


# ---- Warm start -----------------------------------------------------------------------------------------------------


def test_init_from_takes_parameters_and_tokenizer(tmp_path: Path, run, trained: Path) -> None:
    # The options give another vocabulary size, but that of the other run counts.
    told = run(tmp_path / "run", *short("--train.init_from", trained, "--data.vocab_size", 390))
    best = Checkpoints(trained).best()
    assert f"starting from the parameters of {trained}/checkpoints/{best:08d}" in told
    assert "the tokenizer has 400 pieces; data.vocab_size = 390 is not used" in told
    assert (tmp_path / "run/tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    # It starts from the parameters of the other run, with a new optimiser.
    assert entries(tmp_path / "run")[0]["loss"] < entries(trained)[0]["loss"] - 2
    assert entries(tmp_path / "run")[0]["learning_rate"] == pytest.approx(0.01 * 2 / 20)
    # Once it has its own checkpoints, it continues from them, even if the other run is gone.
    told = run(tmp_path / "run", *short("--train.init_from", trained, "--data.vocab_size", 390))
    assert "resuming from step 6" in told


def test_init_from_starts_with_exactly_those_parameters(trained: Path, tiny) -> None:
    config = config_file(tiny.config)
    config = type(config)(config.model, config.data, type(config.train)(init_from=str(trained)), decode=config.decode)
    task = Translation.build(config)
    state = initial(task.objective, config, program(task.objective, config.train, make_mesh(config.mesh)))
    assert equal(state.params, Checkpoints(trained).at(Checkpoints(trained).best()).params())
    assert int(state.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.optimizer))


def test_a_run_that_is_refused_leaves_no_new_folder(tmp_path: Path, run) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(UserError, match=r"^data\.vocab_size = 100000"):
            run(tmp_path / name, *short("--data.vocab_size", 100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_init_from_a_run_of_another_task_is_told(trained: Path) -> None:
    """Where that run's tokenizer could be read."""
    config = MaskedConfig(train=TrainConfig(init_from=str(trained)))
    model = build(config.model.with_vocabulary(Checkpoints(trained).open().progress["vocab_size"]))
    told = (
        r"model\.d_model is 32 there, 768 here.* It is a run of the task 'translation': name one of 'masked', or leave"
    )
    with pytest.raises(UserError, match=told):
        starting_point(config, model.abstract_params)


def test_init_from_what_does_not_fit_is_told_in_one_line(tmp_path: Path, run, trained: Path, monkeypatch) -> None:
    def refused(*arguments: object) -> str:
        with pytest.raises(UserError) as error:
            run(tmp_path / "run", *short("--train.init_from", trained, *arguments))
        assert "\n" not in str(error.value)
        assert not Checkpoints(tmp_path / "run").steps()
        return str(error.value)

    other = tmp_path / "other.model"
    other.write_bytes(Tokenizer.train(["completely other words that were never seen"] * 9, vocab_size=300).model)
    assert "is not the tokenizer of train.init_from" in refused("--data.tokenizer", other)
    both = "--model.d_model is 32 there, 64 here; --model.d_ff is 64 there, 32 here. Give the same values as there"
    assert both in refused("--model.d_ff", 32, "--model.d_model", 64, "--model.dropout", 0.3)
    same_shapes = (
        "--model.activation is 'relu' there, 'gelu' here; --model.positions is 'sinusoidal' there, 'none' here"
    )
    assert same_shapes in refused("--model.activation", "gelu", "--model.positions", "none")
    assert "nowhere: no complete checkpoint there; train first" in refused("--train.init_from", tmp_path / "nowhere")
    inside = trained / "checkpoints"
    with pytest.raises(UserError, match=f"{inside} holds the checkpoints of a run; give the workdir itself: {trained}"):
        run(inside, *short())
    # Before anything is tokenised.
    monkeypatch.setattr(Translation, "prepare", None)
    assert "--model.d_ff is 64 there, 32 here. Give" in refused("--model.d_ff", 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, {}),
        ({"dropout": 0.5, "dtype": "bfloat16", "initializer": "glorot", "attention_kernel": "cudnn"}, {}),
        ({"kv_heads": 8, "d_k": 64, "d_v": 64}, {}),  # the defaults
        ({"max_positions": 2048, "cross_attention": AttentionConfig(window=3)}, {}),
        ({"activation": "gelu"}, {"activation": ("relu", "gelu")}),
        ({"positions": "none"}, {"positions": ("sinusoidal", "none")}),
        ({"d_model": 256}, {"d_model": (512, 256)}),
        ({"heads": 4}, {"heads": (8, 4)}),
        ({"kv_heads": 2}, {"kv_heads": (None, 2)}),
        ({"pre_norm": True, "decoder_layers": 3}, {"pre_norm": (False, True), "decoder_layers": (6, 3)}),
        ({"tied_embeddings": "none"}, {"tied_embeddings": ("all", "none")}),
        ({"cross_attention": AttentionConfig(kv_sharing=2)}, {"cross_attention.kv_sharing": (None, 2)}),
        (
            {"positions": "learned", "max_positions": 9},
            {"positions": ("sinusoidal", "learned"), "max_positions": (1024, 9)},
        ),
    ],
)
def test_the_options_that_make_another_model(change: dict, named: dict) -> None:
    there, here = ModelConfig(), dataclasses.replace(ModelConfig(), **change)
    assert other_fields(there, here) == named
    shapes = [jax.tree.map(np.shape, build(model.with_vocabulary(8)).abstract_params) for model in (there, here)]
    assert shapes[0] == shapes[1] or named


DAMAGED = ["[" * 200_000, "9" * 6_000, '{"train": {"seed": ' + "9" * 6_000, "\xff", "", "null", '{"no_field": 1}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_config_is_taken_from_a_checkpoint(workdir: Path, tiny, caplog, content: str) -> None:
    (workdir / "config.json").write_text(content, encoding="latin-1")
    refuse_other_config(config_file(tiny.config), str(workdir))
    assert "taking the one that checkpoint 120 holds" in caplog.text


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("model", "vocab_size", 401), ("train", "accumulate", 4), ("model", "d_model", "32"), ("data", "source", None)],
)
def test_a_config_unlike_that_of_each_checkpoint_is_damaged(
    workdir: Path, tiny, caplog, section: str, name: str, value: object
) -> None:
    path, checkpoints = workdir / "config.json", Checkpoints(workdir)
    config = json.loads(path.read_text())
    config[section][name] = value
    path.write_text(json.dumps(config))
    assert config_of(checkpoints) == checkpoints.at(120).config
    assert f"is not as it was written ({section}.{name} is {value!r} there, " in caplog.text
    assert "taking the one that checkpoint 120 holds" in caplog.text
    refuse_other_config(config_file(tiny.config), str(workdir))
    # What may change when a run goes on may differ, and so may a checkpoint of another run.
    config = json.loads(checkpoints.at(120).file("config.json"))
    config["train"]["steps"] = 7
    path.write_text(json.dumps(config))
    assert config_of(checkpoints).train.steps == 7


def test_without_config_json_the_newest_whole_checkpoint_gives_it(workdir: Path, tiny, caplog) -> None:
    checkpoints, config = Checkpoints(workdir), config_file(tiny.config)
    before = checkpoints.at(120).config
    (workdir / "config.json").unlink()
    (workdir / "checkpoints/00000120/config.json").write_text("{")
    assert config_of(checkpoints) == before
    refuse_other_config(config, str(workdir))
    with pytest.raises(UserError, match=r"train\.seed is 0 there, 7 now"):
        other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
        refuse_other_config(other, str(workdir))
    for step in (80, 100, 120):
        (workdir / f"checkpoints/{step:08d}").rename(workdir / f"checkpoints/{step:08d}.interrupted")
    assert config_of(checkpoints) == before


def test_a_checkpoint_that_memory_does_not_hold_is_no_damaged_one(workdir: Path, run, monkeypatch) -> None:
    """Otherwise training would discard it and go back further and further."""
    import orbax.checkpoint

    def short_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    before = contents(workdir)
    for name in ("metadata", "restore"):
        with monkeypatch.context() as patch:
            owner = {"metadata": "StandardCheckpointHandler", "restore": "AsyncCheckpointer"}[name]
            patch.setattr(getattr(orbax.checkpoint, owner), name, short_of_memory)
            told = r"^memory ran out \(RuntimeError: can't start new thread\); .*00000120 was not read"
            with pytest.raises(UserError, match=told):
                run(workdir, "--train.steps", 130)
    assert contents(workdir) == before


def test_a_mesh_that_does_not_fit_is_told_before_any_work(tmp_path: Path, run, trained: Path, monkeypatch) -> None:
    monkeypatch.setattr(Translation, "build", None)
    monkeypatch.setattr("transformer.training.sharding.jax.devices", lambda: jax.local_devices() * 3)

    def refused(*arguments: object) -> str:
        with pytest.raises(UserError) as error:
            run(tmp_path / "run", *short(*arguments))
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "mesh.data * mesh.fsdp * mesh.tensor = 2 * 1 * 1 does not match the number of devices, 3" in refused(
        "--mesh.data", 2
    )
    assert "mesh.tensor = 3 does not divide" in refused("--mesh.tensor", 3)
    assert "mesh.tensor = 3 does not divide embedding/table, which has a dimension of 400" in refused(
        *("--mesh.tensor", 3, "--model.heads", 3, "--model.d_k", 4, "--model.d_v", 4, "--model.d_ff", 66)
    )
    assert "model.vocab_size = 401: the tokenizer has 400 pieces; leave" in refused("--model.vocab_size", 401)
    assert "--model.d_model, d_ff, ...), or share it over" in refused("--model.d_ff", 2**31 - 1)
    # The vocabulary size is that of the given tokenizer, not data.vocab_size.
    own = "--data.tokenizer", trained / "tokenizer.model", "--data.vocab_size", 300
    assert "which has a dimension of 400" in refused(
        *("--mesh.tensor", 3, "--model.heads", 3, "--model.d_k", 4, "--model.d_v", 4, "--model.d_ff", 66, *own)
    )


@pytest.mark.slow
def test_a_ready_tokenizer(tmp_path: Path, run, trained: Path) -> None:
    # The size of the tokenizer counts, not data.vocab_size.
    told = run(tmp_path / "run", *short("--data.tokenizer", trained / "tokenizer.model", "--data.vocab_size", 9_999))
    assert not any("training a tokenizer" in line for line in told)
    assert "the tokenizer has 400 pieces; data.vocab_size = 9999 is not used" in told
    assert (tmp_path / "run/tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    assert Checkpoints(tmp_path / "run").at(6).progress["vocab_size"] == 400


# ---- The workdir's own files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("config.json", lambda content: content[: len(content) // 2], "config.json: "),
        ("tokenizer.model", lambda content: content[:50] + b"x" + content[51:], "tokenizer.model is not as it was"),
    ],
)
def test_a_damaged_file_is_taken_from_a_checkpoint(tmp_path: Path, run, workdir: Path, name: str, harm, told) -> None:
    path = workdir / name
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    said = run(workdir, "--train.steps", 121)
    assert any(told in line and "taking the one that checkpoint 120 holds" in line for line in said), said
    assert "resuming from step 120" in said
    assert path.read_bytes() == (whole if name != "config.json" else whole.replace(b'"steps": 120', b'"steps": 121'))


# ---- Dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_does_everything_once_and_leaves_nothing(tmp_path: Path, run, workdir: Path) -> None:
    told = run(tmp_path / "fresh", "--dry-run")
    assert not (tmp_path / "fresh").exists()
    text = "\n".join(told)
    for part in ("devices ", "compiled ", "memory ", "update 1 ", "checkpoint  saved and restored", "estimate "):
        assert part in text
    assert len([line for line in told if line.startswith("compiled ")]) == 2  # the longest shape, the largest
    assert len([line for line in told if line.startswith("decoded ")]) == 2
    assert any(line.startswith("memory") and "GiB a device" in line for line in told)
    assert any(line.startswith("estimate") and "for 120 updates" in line for line in told)
    assert not any("resuming" in line for line in told)


def test_a_dry_run_refuses_what_a_run_refuses_in_the_workdir(
    workdir: Path, run, tiny, tmp_path: Path, monkeypatch
) -> None:
    before = contents(workdir)

    def refused(*arguments: object) -> str:
        with pytest.raises(UserError) as error:
            run(workdir, "--dry-run", *arguments)
        assert contents(workdir) == before
        return str(error.value)

    assert "data.max_ratio is 9.0 there, 8.0 now" in refused("--data.max_ratio", 8)
    with hold(str(workdir)):
        assert "another run trains there" in refused()
    assert "data.tokenizer = " in refused("--data.tokenizer", tiny.config)
    other = tmp_path / "train.en"
    other.write_text((tiny.folder / "train.en").read_text().replace("red", "blue"))
    assert "the training text is not what" in refused("--data.source", other)
    (workdir / "tokenizer.model").unlink()  # as a run, take the tokenizer of the newest checkpoint
    before = contents(workdir)
    monkeypatch.setattr(Tokenizer, "train", None)
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    assert any("tokenizer.model is missing; taking the one that checkpoint 120" in x for x in run(workdir, "--dry-run"))
    assert contents(workdir) == before


def test_a_dry_run_writes_nothing_where_nothing_is(tmp_path: Path, run) -> None:
    (tmp_path / "file").write_text("")
    for workdir in ("file", "file/below"):
        for more in ((), ("--dry-run",)):
            with pytest.raises(UserError, match=f"--workdir .*{workdir}: .*; name a folder that can be written"):
                run(tmp_path / workdir, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "run/.lock").mkdir(parents=True)
    with pytest.raises(UserError, match="Is a directory; name a folder that can be written"):
        run(tmp_path / "run", "--dry-run")


def test_the_banner(tmp_path: Path, run) -> None:
    told = run(tmp_path / "run", *short())
    text = "\n".join(told)
    parameters = Checkpoints(tmp_path / "run").at(6).params()
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert "devices     1 x " in text
    assert f"model       {count:,} parameters, float32, vocabulary 400" in text
    assert "batch       512 positions per side and update, in 2 micro-batches" in text
    assert "data        400 pairs kept, dropped: none; 9 updates an epoch" in text
    assert "shapes      2 to compile: " in text
    assert "dev set     dev.en, 20 pairs; 100.00% and 100.00% of lines survive the tokenizer unchanged" in text
    compiling = [line for line in told if "compiling batch shape" in line]
    assert [line.endswith(f"({i} of 2)") for i, line in enumerate(compiling, 1)] == [True, True]


# ---- Packed rows, traces, memory ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_packed_rows_are_learned_from(run, tmp_path: Path) -> None:
    told = run(tmp_path / "run", "--data.packing", "True", "--train.steps", 60, "--train.accumulate", 1)
    assert any(line.startswith("shapes      1 to compile") for line in told)
    assert sum("compiling batch shape" in line for line in told) == 1
    assert any("1 programs compiled for 1 batch shapes" in line for line in told)
    training = [entry for entry in entries(tmp_path / "run") if "loss" in entry]
    assert training[-1]["loss"] < training[0]["loss"] - 1.5


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_each_shape_is_compiled_once(tiny, packing: bool) -> None:
    """JAX counts the compilations over three epochs."""
    config = config_file(tiny.config)
    data = dataclasses.replace(config.data, packing=packing)
    task = Translation.build(dataclasses.replace(config, data=data))
    made, batches = program(task.objective, config.train, make_mesh(config.mesh, jax.devices()[:1])), task.batches()
    state, feed = made.init(), Feed(batches, made.mesh, config.train.accumulate)
    for host in feed.stream(0, 3 * batches.batches_per_epoch, 2):
        state, _ = made.update(state, feed.put(host))
    assert made.update._cache_size() == len(batches.shapes) == (1 if packing else 2)


@pytest.mark.slow
def test_metrics_are_waited_for_behind_the_next_update(run, tmp_path: Path, monkeypatch) -> None:
    """So the device always has work. But a run that was asked to stop does not wait for a new shape to be compiled."""
    real, happened = loop.program, []

    class Watched:
        def __init__(self, value, step: int):
            self.value, self.step = value, step

        def __float__(self) -> float:
            happened.append(f"fetched {self.step}")
            return float(self.value)

    def watched(*given):
        made, steps = real(*given), itertools.count(1)

        def one(state, batch):
            step = next(steps)
            happened.append(f"given {step}")
            state, metrics = made.update(state, batch)
            return state, {name: Watched(value, step) if name == "loss" else value for name, value in metrics.items()}

        one._cache_size = made.update._cache_size
        return dataclasses.replace(made, update=one)

    monkeypatch.setattr(loop, "program", watched)
    run(tmp_path / "run", *short("--train.checkpoint_every", 99, "--data.length_buckets", 1))
    order = (
        "given 1, given 2, fetched 1, given 3, fetched 2, given 4, fetched 3, given 5, fetched 4, given 6, fetched 5"
    )
    assert happened == [*order.split(", "), "fetched 6"]
    happened.clear()
    told = run(tmp_path / "other", *short("--train.checkpoint_every", 99))
    (second,) = (int(line.split()[1][:-1]) for line in told if "compiling batch shape" in line and "(2 of 2)" in line)
    assert happened.index(f"fetched {second - 1}") < happened.index(f"given {second}")


@pytest.mark.slow
def test_a_trace(run, tmp_path: Path) -> None:
    told = run(tmp_path / "run", *short(), "--profile", "2:3")
    assert any("the trace of updates 2 to 3 is in" in line for line in told)
    (whole,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    assert whole.stat().st_size > 1000
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    told = run(tmp_path / "run", *short(), "--train.steps", 8, "--profile", "2:6")
    assert "no trace is written: updates 2 to 6 are not among 7 to 8" in told
    told = run(tmp_path / "run", *short(), "--train.steps", 10, "--profile", "9:99")  # cut short by the end
    assert any("the trace of updates 9 to 10 is in" in line for line in told)
    with pytest.raises(UserError, match="--profile 2:3: traces can be written to a local workdir only, with a path in"):
        run(tmp_path / os.fsdecode(b"gr\xf6n"), "--profile", "2:3")
    for wrong in ("3", "5:2", "0:1", "a:b"):
        with pytest.raises(UserError, match=f"--profile {wrong}: give the first and the last update"):
            run(tmp_path / "run", *short(), "--profile", wrong)


@pytest.mark.slow
def test_as_many_micro_batches_as_memory_asks_for(tiny, caplog) -> None:
    caplog.set_level(logging.INFO, "transformer")
    config = config_file(tiny.config)
    data = dataclasses.replace(config.data, length_buckets=1)
    # Rows of 12 pieces, 48 of them: twice 24.
    config = dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, batch_tokens=576))

    def task_of(count: int) -> Translation:
        return Translation.build(dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=count)))

    needs = {}
    for count in (1, 2):
        task = task_of(count)
        made = program(task.objective, task.config.train, make_mesh(config.mesh))
        needs[count] = memory_of_an_update(made, task.batches(), count)
    assert needs[1] > needs[2] > 0
    assert accumulation(task_of, needs[1]) == 1
    assert accumulation(task_of, needs[1] - 1) == 2

    # As if two micro-batches made batches smaller, though not that of the longest sentences. An epoch then has more
    # batches, and two is not chosen.
    fewer = Batches.__init__

    def shorter(self, *given, accumulate: int, **options) -> None:
        fewer(self, *given, accumulate=accumulate, **options)
        self.batches_per_epoch += 5 * (accumulate == 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__init__", shorter)
        assert accumulation(task_of, needs[1] - 1) > 2

    def smallest(count: int) -> Translation:
        if count > 1:
            raise UserError("train.batch_tokens: too small for so many micro-batches")
        return task_of(count)

    with pytest.raises(
        UserError, match=r"--batch auto: an update does not fit .* however it is cut up; share the param"
    ):
        accumulation(smallest, 1000)


def test_other_micro_batches_read_nothing_again(tiny, monkeypatch) -> None:
    task = Translation.build(config_file(tiny.config))
    task.prepare()
    read = []
    monkeypatch.setattr(translation, "tokenize", lambda parallel, *_, **__: read.append(parallel))
    monkeypatch.setattr(translation, "read_sides", lambda parallel, *_: read.append(parallel))
    other = task.cut_into(4)
    other.prepare()
    assert not read
    assert (other.config.train.accumulate, task.config.train.accumulate) == (4, 2)
    assert list(other.describe())[2:] == list(task.describe())[2:]
    assert not read
    with pytest.raises(UserError, match=r"train\.accumulate"):
        task.cut_into(0)
    monkeypatch.undo()
    four = config_file(tiny.config)
    four = dataclasses.replace(four, train=dataclasses.replace(four.train, accumulate=4))
    anew = Translation.build(four).batches()
    assert other.batches().shapes == anew.shapes
    for ours, theirs in zip(other.batches()[3], anew[3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_what_batch_auto_finds_is_a_config_that_holds(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fit, "memory_of_a_device", lambda: 100_000)
    with pytest.raises(UserError, match="an update does not fit"):
        run(tmp_path / "run", *short(), "--batch", "auto")


def test_batch_auto_in_a_dry_run(run, tmp_path: Path) -> None:
    told = run(tmp_path / "run", *short(), "--batch", "auto", "--dry-run")
    assert any(line.startswith("batch auto  1 micro-batches fit") for line in told)
    assert any(line.startswith("decoded ") for line in told)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_batch_auto_is_kept_when_training_goes_on(run, tmp_path: Path) -> None:
    run(tmp_path / "run", *short(), "--train.accumulate", 4, "--train.steps", 3)
    told = run(tmp_path / "run", *short(), "--batch", "auto")
    assert any("resuming from step 3" in line for line in told)
    assert from_json((tmp_path / "run" / "config.json").read_text()).train.accumulate == 4
