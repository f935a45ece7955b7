"""Training that is killed and started again ends with the same bits as training without an interruption."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import same_run

from transformer.checkpoint import Checkpoints
from transformer.config import from_json
from transformer.training.loop import PREFETCH

TRAIN = str(Path(__file__).parents[2] / "train.py")
PATIENCE = 300  # seconds to wait for an event


@pytest.fixture
def start(tiny, environment) -> Iterator[Callable[..., subprocess.Popen]]:
    """`start(workdir)`: run train.py in a separate process, which is killed after the test."""
    running = []

    def start(workdir: Path, *arguments: str) -> subprocess.Popen:
        log = (workdir.parent / "log").open("ab")
        command = [sys.executable, TRAIN, "--config", tiny.config, "--workdir", str(workdir), *arguments]
        running.append(subprocess.Popen(command, env=environment, stderr=log, stdout=log))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def wait(process: subprocess.Popen, happened: Callable[[], bool], log: Path) -> None:
    """Wait for an event, which must happen before the process ends."""
    until = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, f"ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < until, f"nothing happened:\n{log.read_text()[-3000:]}"
        time.sleep(0.001)


def finish(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(PATIENCE) == 0, log.read_text()[-3000:]


def kill_during_a_save(process: subprocess.Popen, checkpoints: Path, log: Path) -> str:
    """Kill the process while a checkpoint is half written. Returns the name of the checkpoint."""
    begun = time.time()

    def unfinished() -> list[str]:
        """The unfinished files of this process; another one may have left some, too."""
        complete = max(path.parent.name for path in checkpoints.glob("0*/manifest.json"))
        found = []
        for path in checkpoints.glob("0*"):
            with contextlib.suppress(FileNotFoundError):
                if path.name > complete and path.stat().st_mtime > begun and not (path / "manifest.json").exists():
                    found.append(path.name)
        return found

    while True:
        wait(process, lambda: bool(unfinished()), log)
        process.send_signal(signal.SIGSTOP)  # stop the process to look at its files
        if saving := unfinished():
            process.kill()
            process.wait()
            assert unfinished() == saving
            return saving[0]
        process.send_signal(signal.SIGCONT)  # the checkpoint was already complete


def test_the_run_is_one_that_could_go_wrong(trained: Path) -> None:
    config = from_json((trained / "config.json").read_text())
    assert config.train.accumulate == 2
    assert config.model.dropout == 0.1
    assert config.train.eval_every % config.train.checkpoint_every != 0
    assert PREFETCH >= 2
    progress = Checkpoints(trained).at(100).progress
    assert progress["batch_of_epoch"] != 0  # in the middle of an epoch
    assert progress["epoch"] > 0
    assert progress["interval"]["updates"] == 100 % config.train.log_every != 0  # and in the middle of a log interval


@pytest.mark.slow
def test_killed_after_a_save_and_during_one(trained: Path, start, tmp_path: Path) -> None:
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = start(workdir)
    wait(process, (workdir / "checkpoints/00000050/manifest.json").exists, log)
    process.kill()
    process.wait()
    done = len(entries_so_far(workdir))
    process = start(workdir)
    killed_at = kill_during_a_save(process, workdir / "checkpoints", log)
    assert not (workdir / "checkpoints" / killed_at / "manifest.json").exists()
    finish(start(workdir), log)
    told = log.read_text()
    assert told.count("resuming from step") == 2
    assert done >= 6
    same_run(workdir, trained)


def entries_so_far(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_a_run_from_before_the_default_rule_keeps_its_own(call, tiny, tmp_path) -> None:
    """The command does not set the option. The run was begun when "identity" was the default."""
    workdir, command = tmp_path / "run", ["--config", tiny.config, "--workdir", tmp_path / "run"]
    old = ["--data.normalization", "identity"]
    assert call("train.py", *command, "--train.steps", 2, *old).code == 0
    model = (workdir / "tokenizer.model").read_bytes()
    done = call("train.py", *command, "--train.steps", 4)
    assert done.code == 0 and Checkpoints(workdir).steps()[-1] == 4
    assert "data.normalization stays 'identity', as at the start of this run" in done.err
    assert from_json((workdir / "config.json").read_text()).data.normalization == "identity"
    assert (workdir / "tokenizer.model").read_bytes() == model
    refused = call("train.py", *command, "--train.steps", 4, "--data.normalization", "nfkc")
    assert refused.code == 2 and "data.normalization is 'identity' there, 'nfkc' now" in refused.err
