"""A second task (one file and a row in two tables) trains, resumes and is evaluated by the same programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import second_task
from runs import average

from transformer.checkpoint import Checkpoints
from transformer.config import RUNS, UserError
from transformer.inference.translator import Translator
from transformer.tasks import TASKS
from transformer.tasks.scoring import evaluate_workdir

CONFIG = """
import second_task
from transformer.config import ModelConfig, TrainConfig

config = second_task.Config(
    model=ModelConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ff=64, heads=2, dropout=0.1),
    train=TrainConfig(
        steps=60, batch_tokens=256, accumulate=2, warmup_steps=20, peak_learning_rate=0.01,
        log_every=10, eval_every=10, checkpoint_every=20, keep_last=1,
    ),
)
"""


@pytest.fixture
def config(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(RUNS, "reversal", second_task.Config)
    monkeypatch.setitem(TASKS, "reversal", lambda: second_task.Reversal)
    path = tmp_path / "reversal.py"
    path.write_text(CONFIG)
    return path


def test_it_trains_is_judged_resumes_and_is_evaluated(config: Path, tmp_path: Path, call) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    for workdir, *steps in ((straight,), (run, "--train.steps", 30), (run,)):
        assert call("train.py", "--config", config, "--workdir", workdir, *steps).code == 0
    last = [Checkpoints(workdir).open("last") for workdir in (straight, run)]
    assert [one.name for one in last] == [60, 60]
    for ours, theirs in zip(*(np.concatenate([x.ravel() for x in leaves(one.params())]) for one in last), strict=True):
        assert ours == theirs
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wrong = {entry["step"]: entry["dev_wrong"] for entry in entries if "dev_wrong" in entry}
    assert list(wrong) == [10, 20, 30, 40, 50, 60]
    assert min(wrong.values()) < wrong[10] - 0.2  # it learns
    best = Checkpoints(run).best()
    assert wrong[best] == min(wrong.values())
    done = call("evaluate.py", "--workdir", run)
    assert done.out == f"{wrong[best]:.1%} wrong, checkpoint {best}\n"
    assert json.loads((run / "scores.jsonl").read_text())["wrong"] == pytest.approx(wrong[best])
    told = call("train.py", "--config", config, "--workdir", run, "--length", 5)
    assert told.code == 2 and "was trained with another config: length is 4 there, 5 now" in told.err


def leaves(params) -> list[np.ndarray]:
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(params)]


def test_its_config_is_shown_and_checked_and_a_dry_run_does_all_once(config: Path, tmp_path: Path, call) -> None:
    shown = json.loads(call("train.py", "--config", config, "--print-config", "--length", 7).out)
    assert (shown["task"], shown["length"], shown["train"]["steps"]) == ("reversal", 7, 60)
    refused = call("train.py", "--config", config, "--workdir", tmp_path / "run", "--length", 1)
    assert refused.code == 2 and refused.err.strip().endswith("length = 1: must be at least 2")
    dry = call("train.py", "--config", config, "--workdir", tmp_path / "run", "--dry-run", "--batch", "auto")
    assert dry.code == 0 and "shapes      1 to compile: 64x4+4" in dry.err and not (tmp_path / "run").exists()


def test_a_run_of_one_task_does_not_go_on_as_another(config: Path, tiny, workdir: Path, call) -> None:
    refused = call("train.py", "--config", config, "--workdir", workdir)
    assert refused.code == 2
    assert "was trained with another config: task is 'translation' there, 'reversal' now" in refused.err


@pytest.fixture
def reversal(config: Path, tmp_path: Path, call) -> Path:
    """The workdir of a short run of the second task."""
    folder = tmp_path / "reversal"
    assert call("train.py", "--config", config, "--workdir", folder, "--train.steps", 10).code == 0
    return folder


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_translation_does_not_begin_in_a_workdir_of_another_task(reversal: Path, tiny, call, more) -> None:
    done = call("train.py", "--config", tiny.config, "--workdir", reversal, *more)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "was trained with another config: task is 'reversal' there, 'translation' now" in done.err


def test_what_is_for_translation_refuses_another_task(
    config: Path, reversal: Path, trained: Path, tmp_path, call
) -> None:
    told = "its task is 'reversal'; give one of the task 'translation'"
    for arguments in (
        ("translate", reversal),
        ("translate", trained, "--ensemble", reversal),
        ("score", reversal),
        ("convert", reversal, tmp_path / "out", "--kv-heads", 1),
        ("export", reversal, tmp_path / "out", "--to", "hf-marian"),
        ("describe", "--config", config, "--kv"),
        ("plan", "--config", config, "--topology", "v5e:2x2", "--mesh", "4,1,1", "--only", "decoding"),
        ("describe", "--config", config),
        ("describe", "--config", config, "--attention"),
        ("plan", "--config", config, "--topology", "v5e:2x2", "--mesh", "4,1,1"),
    ):
        done = call("transformer", *arguments)
        named = f"--config {config}" if "--config" in arguments else str(reversal)
        of_all = arguments[0] in ("describe", "plan") and not {"--kv", "--only"} & {*arguments}
        scored = arguments[0] == "score"
        more = " or 'language_model'" * (of_all or scored) + " or 'masked'" * of_all
        described = of_all and arguments[0] == "describe"
        more += " or 'labels' or 'parsing' or 'algorithm'" * described
        more += " or 'byte_latent'" * (scored or (described and "--attention" not in arguments))
        assert done.code == 2 and done.err.splitlines()[-1] == f"error: {named}: {told}{more}", (arguments, done)
    assert not (tmp_path / "out").exists() and not (reversal / "checkpoints" / "average").exists()
    done = call("evaluate.py", "--workdir", trained, "--against", reversal)
    assert done.code == 2 and done.err.endswith(f"error: {reversal}: {told}\n")
    for load in (evaluate_workdir, Translator.load):
        with pytest.raises(UserError, match=f"^{reversal}: {told}$"):
            load(str(reversal))
    with pytest.raises(UserError, match=r"/00000010 holds no tokenizer\.model; choose another checkpoint or workdir$"):
        Checkpoints(reversal).open().file("tokenizer.model")


@pytest.mark.slow
def test_its_checkpoints_are_averaged(config: Path, tmp_path: Path, call) -> None:
    """And scored before and after by the task's own score."""
    folder = tmp_path / "run"
    assert call("train.py", "--config", config, "--workdir", folder, "--train.keep_last", 5).code == 0
    last = json.loads(call("evaluate.py", "--workdir", folder, "--checkpoint", "last", "--json").out)
    lines, result = average(call, folder, [40, 50, 60])
    assert lines == [f"wrong: {last['wrong']:.4f} before (step 60), {result['wrong']:.4f} after"]
    done = call("transformer", "average", folder, "--decode.beam_size", 2)
    told = f"--decode.beam_size: the task of {folder} has no such option; leave it out (it has --last)"
    assert done.code == 2 and done.err.splitlines()[-1] == f"error: {told}"


def test_it_is_not_evaluated_with_options_of_translation(reversal: Path, tmp_path: Path, call) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\n")
    for option, value in (
        ("--source", pairs),
        ("--against", reversal),
        ("--decode.beam_size", 0),
        ("--decode.baem_size", 2),
    ):
        done = call("evaluate.py", "--workdir", reversal, option, value)
        assert done.code == 2 and done.err.splitlines()[-1] == (
            f"error: {option}: the task of {reversal} has no such option; leave it out (it has --checkpoint)"
        )
    assert not (reversal / "scores.jsonl").exists()
    assert call("evaluate.py", "--workdir", reversal, "--checkpoint", "last").code == 0
