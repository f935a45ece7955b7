"""One of two training processes is killed: the other ends with the reason; restarted, both resume."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import same_run
from two import both, port, start

from transformer.training.processes import LOST

pytestmark = pytest.mark.slow
PATIENCE = 300  # seconds


@pytest.fixture(scope="module")
def straight(tiny, environment, tmp_path_factory) -> Path:
    """The workdir of two processes that are not disturbed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = both(environment, "--config", tiny.config, "--workdir", workdir)
    assert [code for code, _ in done] == [0, 0], done
    return workdir


@pytest.fixture
def pair(tiny, environment, tmp_path: Path) -> Iterator[Callable[[], list[subprocess.Popen]]]:
    """`pair()`: two processes that train in `tmp_path/run` and have saved a checkpoint. They end with the test."""
    running: list[subprocess.Popen] = []

    def pair() -> list[subprocess.Popen]:
        arguments = "--config", tiny.config, "--workdir", tmp_path / "run", "--coordinator", f"127.0.0.1:{port()}"
        running.extend(start(environment, 1, *arguments, "--process", f"{i}/2") for i in range(2))
        until = time.monotonic() + PATIENCE
        while not (tmp_path / "run/checkpoints/00000025/manifest.json").exists():
            assert [process.poll() for process in running] == [None, None], running[0].stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        return running

    yield pair
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed(straight: Path, pair, tiny, environment, tmp_path: Path, report, victim: int) -> None:
    running = pair()
    running[victim].kill()
    killed = time.monotonic()
    told = running[1 - victim].communicate(timeout=PATIENCE)[1]
    seconds = time.monotonic() - killed
    assert running[1 - victim].returncode == LOST, told
    assert seconds < 30
    last = told.splitlines()[-1]
    assert last.startswith("error: another process of this job was lost, so this one ends, too")
    assert last.endswith("start all of them again: they go on from the last checkpoint")
    assert "Traceback" not in told
    done = both(environment, "--config", tiny.config, "--workdir", tmp_path / "run")
    assert [code for code, _ in done] == [0, 0], done
    assert "resuming from step" in done[0][1]
    same_run(tmp_path / "run", straight)
    report(f"process {victim} of two killed: the other ended after {seconds:.1f} s")


@pytest.mark.parametrize("told", [0, 1])
def test_one_is_asked_to_stop(straight: Path, pair, tiny, environment, tmp_path: Path, told: int) -> None:
    """Both stop after the same update, and resume from there."""
    running = pair()
    running[told].terminate()
    logs = [process.communicate(timeout=PATIENCE)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], logs
    last = [log.splitlines()[-1] for log in logs]
    assert last[0] == last[1]
    assert last[0].startswith("SIGTERM: stopped after update ")
    done = both(environment, "--config", tiny.config, "--workdir", tmp_path / "run")
    assert [code for code, _ in done] == [0, 0], done
    same_run(tmp_path / "run", straight)


def test_a_disk_that_only_one_finds_full(pair, tmp_path: Path) -> None:
    """Only process 0 writes the log, so only it fails; the other does not wait for it."""
    running = pair()
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    logs = [process.communicate(timeout=PATIENCE)[1] for process in running]
    assert [process.returncode for process in running] in ([2, 2], [2, LOST]), logs
    assert "metrics.jsonl cannot be written (Is a directory); make room" in logs[0]
    assert not any("Traceback" in log for log in logs)
