"""Damaged checkpoints: training names the damage, resumes from the newest good one and deletes nothing. Full and
read-only disks. Readers while a run writes."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import entries, leftovers, same_run, state

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.files import digest, files_in
from transformer.jobs import train
from transformer.training.progress import Display

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def largest(checkpoint: Path) -> Path:
    return max((path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


def truncate(checkpoint: Path, other: Path) -> None:
    path = largest(checkpoint)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(checkpoint: Path, other: Path) -> None:
    largest(checkpoint).write_bytes(b"")


def flip(checkpoint: Path, other: Path) -> None:
    content = bytearray(largest(checkpoint).read_bytes())
    content[len(content) // 2] ^= 4
    largest(checkpoint).write_bytes(content)


def half_copied(checkpoint: Path, other: Path) -> None:
    for path in [path for path in (checkpoint / "state").rglob("*") if path.is_file()][::2]:
        path.unlink()


def foreign(checkpoint: Path, other: Path) -> None:
    """A complete checkpoint of another model."""
    shutil.rmtree(checkpoint)
    shutil.copytree(other / "checkpoints/00000006", checkpoint)


def newer(checkpoint: Path, other: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"experts": {"count": 8}}))
    seal(checkpoint)


def other_tokenizer(checkpoint: Path, other: Path) -> None:
    shutil.copy(other / "tokenizer.model", checkpoint / "tokenizer.model")
    seal(checkpoint)


def an_average(checkpoint: Path, other: Path) -> None:
    """Training can't resume from this: it has no optimiser state."""
    shutil.rmtree(checkpoint / "state/optimizer")
    seal(checkpoint)


def an_earlier_one(checkpoint: Path, other: Path) -> None:
    """A copy of an earlier checkpoint under the later name."""
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("00000100"), checkpoint)


def another_seed(checkpoint: Path, other: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["train"]["seed"] = 5
    (checkpoint / "config.json").write_text(json.dumps(config))
    seal(checkpoint)


def something_else(checkpoint: Path, other: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04")
    seal(checkpoint)


def seal(checkpoint: Path) -> None:
    """Write a manifest of the present files."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    manifest = {str(path.relative_to(checkpoint)): digest(path) for path in files_in(checkpoint)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> Path:
    """A run of another model, with another tokenizer."""
    folder = tmp_path_factory.mktemp("other") / "run"
    options = "--model.d_ff=48", "--data.vocab_size=350", "--train.steps=6", "--train.eval_sentences=2"
    train(["--config", tiny.config, "--workdir", str(folder), *options])
    return folder


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (truncate, "00000120/state/.* is not as it was written"),
        (empty, "00000120/state/.* is not as it was written"),
        (flip, "00000120/state/.* is not as it was written"),
        (half_copied, "00000120/state/.* is missing"),
        (foreign, "00000120 belongs to another run: different model.d_ff, model.vocab_size, data.vocab_size"),
        (newer, "config.json: unknown field 'experts'; was it written by a newer version?"),
        (other_tokenizer, "00000120 belongs to another run: its tokenizer.model differs from that of .*/run"),
        (an_average, "00000120 is not a checkpoint that training can resume from"),
        (an_earlier_one, "00000120 is not a checkpoint that training can resume from"),
        (another_seed, "00000120 belongs to another run: different train.seed"),
        (something_else, "00000120 holds no config.json"),
    ],
)
def test_harmed(workdir: Path, trained: Path, other: Path, call, tiny, harm: Callable, told: str) -> None:
    newest = workdir / "checkpoints/00000120"
    harm(newest, other)
    there = {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()}
    # The newest checkpoint is damaged, so the run resumes from the one before.
    done = call("train.py", "--config", tiny.config, "--workdir", workdir)
    assert done.code == 0
    assert "Traceback" not in done.err
    warnings = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert re.search(told + ".*going back to the previous checkpoint", warnings[0]), warnings
    assert "resuming from step 100" in done.err
    # Step 120 is saved again under the same name; a copy of the damaged one stays.
    kept = [path for path in (workdir / "checkpoints").iterdir() if "damaged" in path.name]
    assert len(kept) == 1
    for path, content in there.items():
        assert (kept[0] / path.relative_to(newest)).read_bytes() == content
    same_run(workdir, trained)


def test_evaluation_names_what_is_wrong(workdir: Path, other: Path, call) -> None:
    for harm in (truncate, newer, something_else):
        harm(workdir / "checkpoints/00000120", other)
        done = call("evaluate.py", "--workdir", workdir, "--checkpoint", "last")
        assert done.code == 2
        assert "00000120" in done.err.splitlines()[-1]
        assert "Traceback" not in done.err


# ---- Disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk(options)`: mount a new file system at `tmp_path/disk`, or remount it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def disk(options: str) -> Path:
        again = ",remount" if mounted else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options + again, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(options)
        return folder

    yield disk
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Collect garbage after each test. Failed saves leave futures that log a traceback when they are collected. If that
    happens in a later test while tyro parses source, CPython 3.11 raises SystemError."""
    yield
    gc.collect()


@pytest.fixture
def apart(environment) -> Callable[..., tuple[int, str]]:
    """`apart("train.py", ...)`: run a command in a separate process; returns its exit code and log."""

    def apart(program: str, *arguments: object, **variables: str) -> tuple[int, str]:
        command = [sys.executable, program, *map(str, arguments)]
        done = subprocess.run(command, env=environment | variables, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stderr

    return apart


def test_a_full_disk_stops_training_and_loses_nothing(disk, trained: Path, call, apart, tiny) -> None:
    each = sum(path.stat().st_size for path in (trained / "checkpoints/00000120").rglob("*") if path.is_file())
    folder = disk(f"size={each * 5 // 2 // 1024 + 200}k")  # room for two and a half checkpoints
    command = "train.py", "--config", tiny.config, "--workdir", folder / "run"
    done = call(*command)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert "make room" in error
    assert "Traceback" not in done.err
    good = Checkpoints(folder / "run").states()
    assert good
    assert all(Checkpoints(folder / "run").at(name).damage() is None for name in good)
    Checkpoints(folder / "run").at(good[-1]).params()
    disk("size=100m")
    code, told = apart(*command)
    assert code == 0, told[-3000:]
    assert f"resuming from step {good[-1]}" in told
    same_run(folder / "run", trained)
    assert leftovers(folder / "run") == []


def test_a_disk_that_becomes_read_only(disk, tmp_path: Path, trained: Path, call, apart, tiny, monkeypatch) -> None:
    folder, advance = disk("size=100m"), Display.advance
    command = "train.py", "--config", tiny.config, "--workdir", folder / "run"

    def advanced(self, step: int) -> None:
        advance(self, step)
        if step == 60:
            remount = ["mount", "-o", "remount,ro,size=100m", folder]
            # The disk is busy while a checkpoint is being written.
            assert any(subprocess.run(remount).returncode == 0 or time.sleep(0.1) for _ in range(300))

    monkeypatch.setattr(Display, "advance", advanced)
    # A folder with an open lock file can't be remounted read-only.
    monkeypatch.setattr("transformer.training.workdir.hold", lambda _: contextlib.nullcontext())
    done = call(*command)
    assert done.code == 2
    assert "Read-only file system" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    cache = str(tmp_path / "cache")
    code, told = apart("evaluate.py", "--workdir", folder / "run", "--checkpoint", "last", TRANSFORMER_CACHE=cache)
    assert code == 0, told[-3000:]
    code, told = apart(*command, TRANSFORMER_CACHE=cache)  # the disk is read-only from the start
    assert code == 2
    assert "Read-only file system" in told.splitlines()[-1]
    disk("size=100m,rw")
    code, told = apart(*command, TRANSFORMER_CACHE=cache)
    assert code == 0, told[-3000:]
    same_run(folder / "run", trained)
    assert leftovers(folder / "run") == []


def test_one_harmed_among_the_older_ones(workdir: Path, call, tiny) -> None:
    """A damaged older checkpoint is not read while there is a newer one, and does not prevent saving and removing."""
    (workdir / "checkpoints/00000080/progress.json").write_text("{")
    done = call("train.py", "--config", tiny.config, "--workdir", workdir, "--train.steps", 200)
    assert done.code == 0
    told = [line for line in done.err.splitlines() if line.startswith("warning: 00000080 is kept, as its score is not")]
    assert len(told) == 1
    assert "00000080/progress.json is not as it was written" in told[0]
    checkpoints = Checkpoints(workdir)
    best = checkpoints.best(set())
    assert checkpoints.steps() == sorted({80, best, 160, 175, 200})


def test_half_a_copy_without_its_manifest_is_kept(workdir: Path, trained: Path, call, tiny) -> None:
    (workdir / "checkpoints/00000120/manifest.json").unlink()
    done = call("train.py", "--config", tiny.config, "--workdir", workdir)
    assert done.code == 0
    assert "00000120 is kept as 00000120.damaged" in done.err
    same_run(workdir, trained)


# ---- Moved ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_elsewhere_with_the_same_text(workdir: Path, trained: Path, call, tiny, tmp_path: Path) -> None:
    """Workdir and text were moved to another place."""
    shutil.rmtree(workdir / "checkpoints/00000120")
    moved = tmp_path / "moved"
    shutil.copytree(tiny.folder, moved)
    names = ("source", "target", "dev_source", "dev_target", "test_source", "test_target")
    files = ("train.en", "train.de", "dev.en", "dev.de", "test.en", "test.de")
    paths = [f"--data.{name}={moved / file}" for name, file in zip(names, files, strict=True)]
    command = "train.py", "--config", tiny.config, "--workdir", workdir, *paths
    # Other text is refused, and nothing is changed.
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    source = moved / "train.en"
    for changed in (source.read_text().replace("red", "blue", 1), source.read_text().replace("red", "blue")):
        source.write_text(changed)
        done = call(*command)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith(f"error: the training text is not what {workdir} was trained on")
        assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    done = call(*command, "--data.weights=2")
    assert (done.code, "data.weights is () there, (2.0,) now" in done.err) == (2, True)
    shutil.copy(tiny.folder / "train.en", moved)
    done = call(*command)
    assert done.code == 0
    assert f"resuming with data.source changed from ('{tiny.folder}/train.en',) to ('{moved}/train.en',)" in done.err
    assert "resuming from step 100" in done.err
    # So small a model may hardly use its source; there must be no other warning.
    warned = [line for line in done.err.splitlines() if line.startswith("warning")]
    assert not [line for line in warned if "the source hardly helps" not in line]
    for one, other in zip(state(workdir, 120), state(trained, 120), strict=True):
        assert one.tobytes() == other.tobytes()
    assert entries(workdir) == entries(trained)
    assert Checkpoints(workdir).at(120).progress == Checkpoints(trained).at(120).progress
    # Another development set gives a warning, and the best checkpoint is chosen anew.
    (moved / "dev.en").write_text((moved / "dev.en").read_text().replace("red", "blue"))
    done = call(*command, "--train.steps=121")
    assert done.code == 0
    assert "scores cannot be compared with those before step" in done.err


# ---- Readers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(tiny, environment, tmp_path: Path) -> Iterator[Path]:
    """The workdir of a running training that keeps one checkpoint and saves one at each update."""
    workdir = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--config", tiny.config, "--workdir", workdir]
    options = ["--train.steps=100000", "--train.checkpoint_every=1", "--train.keep_last=1", "--train.eval_every=99999"]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(list(map(str, command + options)), env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 300
        while not (workdir / "checkpoints").exists() or not Checkpoints(workdir).steps():
            assert running.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < until
        yield workdir
        assert running.poll() is None, (tmp_path / "log").read_text()[-2000:]
    finally:
        running.kill()
        running.wait()


def test_a_reader_beside_a_run_that_writes(writer: Path, report) -> None:
    steps = set()
    for _ in range(40):

        def read(opened: Checkpoint) -> int | str:
            opened.config, opened.params()
            return opened.name

        steps.add(Checkpoints(writer).read("last", read))
    assert len(steps) > 3
    report(f"40 checkpoints read, of {len(steps)} steps, beside a run that keeps one and makes one at each update")


def test_the_commands_beside_a_run_that_writes(writer: Path, apart, report) -> None:
    steps = set()
    for _ in range(2):
        code, told = apart("evaluate.py", "--workdir", writer, "--checkpoint", "last", "--decode.beam_size", 1)
        assert code == 0, told[-3000:]
        steps.add(re.search(r"sentences of test.en with checkpoint (\d+) of", told)[1])
        code, told = apart("-m", "transformer", "average", writer, "--last", 3)
        assert code == 0, told[-3000:]
    assert len(steps) == 2
    report(f"evaluate.py and average twice beside a run that keeps one checkpoint, of steps {', '.join(steps)}")
