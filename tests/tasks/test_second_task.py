"""A second task (one file and a row in two tables) trains, resumes and is evaluated by the same programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import second_task

from transformer.checkpoint import Checkpoints
from transformer.config import RUNS
from transformer.tasks import TASKS

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
