"""Training that is killed many times, at random and in every phase that writes, and restarted each time, ends like
uninterrupted training: the same bits, and each log entry once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import entries, leftovers, same_run

from transformer.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

TOLD = str(Path(__file__).with_name("told.py"))
PATIENCE = 300  # seconds to wait for any event
STAY = 0.3  # seconds that a run pauses at the begin and at the end of a phase
# The phases in which a run is killed, in this order -> how often.
PREPARING = {
    "building the tokenizer": 2,
    "renaming the tokenizer": 2,
    "building the token store": 2,
    "renaming the token store": 2,
}
TRAINING = {"evaluation": 3, "saving": 4, "renaming manifest.json": 3, "pruning": 3}


@pytest.fixture
def begin(tiny, environment, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`begin(*arguments)`: start train.py with a new cache; it writes its phases to `tmp_path/phases`."""
    running = []
    own = environment | {"TRANSFORMER_CACHE": str(tmp_path / "cache")}

    def begin(*arguments: str) -> subprocess.Popen:
        (tmp_path / "phases").write_text("")
        command = [sys.executable, TOLD, str(tmp_path / "phases"), str(STAY), "--config", tiny.config]
        command += ["--workdir", str(tmp_path / "run"), *arguments]
        with (tmp_path / "log").open("ab") as log:
            running.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def told(folder: Path) -> list[str]:
    return (folder / "phases").read_text().splitlines()


def in_phase(folder: Path, phase: str) -> bool:
    """Whether the run is in this phase: the last line about it is its begin."""
    lines = [line for line in told(folder) if line.partition(" ")[2].startswith(phase)]
    return bool(lines) and lines[-1].startswith("begin ")


def until(process: subprocess.Popen, happened: Callable[[], bool], folder: Path) -> bool:
    """Wait until `happened()`; False if the run ended before."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            assert process.returncode == 0, (folder / "log").read_text()[-3000:]
            return False
        assert time.monotonic() < end, (folder / "log").read_text()[-3000:]
        time.sleep(0.002)
    return True


def test_killed_in_every_phase_and_at_random(trained: Path, begin, tmp_path: Path, report) -> None:
    draw, inside = random.Random(0), Counter()

    def kill_in(phase: str, times: int) -> None:
        while inside[phase] < times:
            process = begin()
            assert until(process, lambda: in_phase(tmp_path, phase), tmp_path), f"it ended without {phase}"
            # A phase that occurs once in a run must not be over before the kill.
            time.sleep(draw.uniform(0, STAY / 4 if phase.startswith("renaming") else 2 * STAY))
            process.send_signal(signal.SIGSTOP)  # stop it, so that it stays in the phase while we look
            inside[phase] += in_phase(tmp_path, phase)
            process.kill()
            process.wait()

    def kill_at_random(longest: float, what: str, after: str = "") -> bool:
        """Kill a run up to `longest` seconds after its start or after the log has `after`; False if it ended before."""
        said = (tmp_path / "log").read_text().count(after) if after and (tmp_path / "log").exists() else 0
        process = begin()
        try:
            if after and not until(process, lambda: (tmp_path / "log").read_text().count(after) > said, tmp_path):
                return False
            assert process.wait(draw.uniform(0.0 if after else 0.3, longest)) == 0, log()
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            inside[what] += 1
            return True

    def log() -> str:
        return (tmp_path / "log").read_text()[-3000:]

    for phase, times in PREPARING.items():
        kill_in(phase, times)
    for _ in range(2):
        assert kill_at_random(6, "at random while it starts")
    for _ in range(4):
        kill_at_random(1, "at random among updates", after="compiled in")
    for phase, times in TRAINING.items():
        kill_in(phase, times)
    for _ in range(8):
        if not kill_at_random(2, "at random among updates", after="compiled in"):
            break
    else:
        process = begin()
        assert process.wait(PATIENCE) == 0, log()
    same_run(tmp_path / "run", trained)
    assert inside["at random among updates"] >= 3
    assert leftovers(tmp_path / "run") == []
    assert inside.total() >= 25
    assert "Traceback" not in (tmp_path / "log").read_text()
    # The kills left no temporary files.
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    counts = ", ".join(f"{count} {phase}" for phase, count in inside.items())
    report(f"{inside.total()} kills survived, the end the same bit for bit: {counts}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_at_random_moments(trained: Path, begin, tmp_path: Path, report, number: int, code: int) -> None:
    draw, seconds, log = random.Random(1), [], tmp_path / "log"
    for _ in range(8):
        process = begin()
        # Wait for the first save: before the first update there is nothing to save.
        if not until(process, lambda: any("saving" in line for line in told(tmp_path)), tmp_path):
            break
        time.sleep(draw.uniform(0, 2))
        asked = time.monotonic()
        process.send_signal(number)
        process.wait(PATIENCE)
        last = log.read_text().splitlines()[-1]
        if last.startswith("done in "):  # the run had finished
            break
        seconds.append(time.monotonic() - asked)
        assert process.returncode == code, log.read_text()[-3000:]
        name, _, said = last.partition(": stopped after update ")
        assert name == signal.Signals(number).name
        step, _, rest = said.partition("; ")
        assert rest == "the same command goes on from there"
        saved = Checkpoints(tmp_path / "run")
        assert saved.at(saved.states()[-1]).progress["step"] == int(step)
    process = begin()
    assert process.wait(PATIENCE) == 0
    same_run(tmp_path / "run", trained)
    assert len(seconds) >= 2
    assert max(seconds) < 10
    report(f"{signal.Signals(number).name} {len(seconds)} times: saved and ended within {max(seconds):.1f} s")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_asked_to_stop_before_there_is_anything_to_save(begin, tmp_path: Path, number: int, code: int) -> None:
    process = begin()
    until(process, lambda: in_phase(tmp_path, "building the token store"), tmp_path)
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == ("interrupted" if number == signal.SIGINT else f"{signal.Signals(number).name}: interrupted")
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_second_interrupt_stops_at_once(begin, tmp_path: Path) -> None:
    process = begin("--train.steps", "100000")
    until(process, lambda: any("end saving" in line for line in told(tmp_path)), tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # shorter than the save that the first signal started
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert (tmp_path / "log").read_text().splitlines()[
        -1
    ] == "interrupted; the same command goes on from the last checkpoint"
    saved = Checkpoints(tmp_path / "run")
    assert saved.states() == saved.steps() != []  # nothing more was saved, nothing is lost
    process = begin("--train.steps", "130")
    assert process.wait(PATIENCE) == 0
    steps = [entry["step"] for entry in entries(tmp_path / "run")]
    assert steps == sorted(set(steps))
