"""benchmarks/initialization.py: trainings that are stopped and go on have each evaluation's row once; mixed starts."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer
from transformer.config import ModelConfig
from transformer.model import build

ROOT = Path(__file__).parents[2]
# In place of train.py: evaluates at steps 2, 4, 6 and 8; goes on from a state before the last evaluation in its log.
# Stays at step 5 until there is a file `go`.
TRAIN = """
import json, os, sys, time
from pathlib import Path

assert "--lr=1" in sys.argv
workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
workdir.mkdir(exist_ok=True)
path = workdir / "metrics.jsonl"
lines = path.read_text().splitlines()[:-2] if path.exists() else []
path.write_text("".join(line + "\\n" for line in lines))
for step in range(len(lines) + 1, 9):
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "dev_loss" if step % 2 == 0 else "loss": step / 4}) + "\\n")
    if "broken" in workdir.name and step == 3:
        sys.exit("no\\nnumbers")
    while step == 5 and not os.path.exists(f"{workdir}/../go"):
        time.sleep(0.01)
path.open("a").write('{"step": 10, "dev_lo')
"""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def trainings(monkeypatch, tmp_path: Path):
    """The module, with the script above as train.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import trainings

    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(trainings, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(trainings, "PAUSE", 0.01)
    return trainings


def started(trainings, folder: Path, *names: str, rows: str = "rows.jsonl"):
    """Rows of trainings of these names, two at a time."""
    file = trainings.Rows(folder / rows, device="none", commit="abc")
    made = [trainings.Training(file, folder / "kept" / name, ["--lr=1"], {"name": name}) for name in names]
    return trainings.rows_of(made, 2)


def test_a_training_that_goes_on_has_no_row_twice(trainings, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    found = started(trainings, tmp_path, *names)
    assert next(found)["step"] == 2
    logs = [tmp_path / f"kept/{name}/metrics.jsonl" for name in "ab"]
    while not all(log.exists() and '"step": 5' in log.read_text() for log in logs):
        time.sleep(0.01)
    found.close()  # as Ctrl-C does
    kept = lines(tmp_path / "rows.jsonl")
    assert sorted((row["name"], row["step"]) for row in kept) == [("a", 2), ("a", 4), ("b", 2), ("b", 4)]
    assert not (tmp_path / "kept/c").exists()
    (tmp_path / "kept/go").touch()

    rest = list(started(trainings, tmp_path, *names))
    every = lines(tmp_path / "rows.jsonl")
    assert every[: len(kept)] == kept and len(every) == len(kept) + len(rest)
    for name in names:
        assert [(row["step"], row["dev_loss"]) for row in every if row["name"] == name] == [
            *((2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0))
        ]
    assert {(row["commit"], row["device"]) for row in every} == {("abc", "none")}

    # Once more: all is there. Rows that a file lacks are added, also to another one.
    assert list(started(trainings, tmp_path, *names)) == []
    assert lines(tmp_path / "rows.jsonl") == every
    with (tmp_path / "other.jsonl").open("w") as other:
        other.write(json.dumps(every[0]) + "\n")
    assert list(started(trainings, tmp_path, *names, rows="other.jsonl")) == []
    assert sorted(map(str, lines(tmp_path / "other.jsonl"))) == sorted(map(str, every))


def test_rows_are_there_while_the_training_runs_and_a_failure_has_one(trainings, tmp_path: Path) -> None:
    found = started(trainings, tmp_path, "broken")
    assert next(found) == {"name": "broken", "step": 2, "dev_loss": 0.5}
    (row,) = lines(tmp_path / "rows.jsonl")
    assert (row["step"], row["dev_loss"]) == (2, 0.5)
    assert list(found) == [{"name": "broken", "failed": "numbers"}]
    assert [row.get("failed") for row in lines(tmp_path / "rows.jsonl")] == [None, "numbers"]


@pytest.mark.parametrize(
    ("half", "names"), [("fairseq-attention", {"query", "key", "value"}), ("fairseq-feed-forward", {"w1", "w2"})]
)
def test_a_mixed_start_takes_one_half_of_fairseq(monkeypatch, tiny, tmp_path: Path, half: str, names: set) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import initialization

    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=32, heads=2)
    model, mixed = transformer.load(initialization.mixed(tiny.config, tmp_path / "run", config, half, 3))
    key = jax.random.fold_in(jax.random.key(3), 0)
    starts = {
        name: build(dataclasses.replace(model.config, initializer=name)).init(key) for name in ("glorot", "fairseq")
    }
    for path, x in jax.tree.leaves_with_path(mixed):
        expected = starts["fairseq" if path[-1].key in names else "glorot"]
        for part in path:
            expected = expected[part.key]
        np.testing.assert_array_equal(x, expected, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_seeds_are_stopped_and_go_on(environment, tiny, tmp_path: Path) -> None:
    program = [sys.executable, ROOT / "benchmarks/initialization.py", "seeds", "--config", tiny.config, "--depths", "1"]
    program += ["--initializers", "scaled", "--updates", "40", "--eval-every", "10", "--eval-sentences", "4"]
    program += ["--folder", tmp_path / "kept", "--rows", tmp_path / "rows", "--train.batch_tokens=256"]
    with subprocess.Popen(list(map(str, program)), stderr=subprocess.PIPE, text=True, env=environment) as stopped:
        while not (tmp_path / "rows").exists():
            assert stopped.poll() is None, stopped.stderr.read()
            time.sleep(0.1)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait() == 143
    kept = [row["step"] for row in lines(tmp_path / "rows")]
    assert kept[0] == 10 and 40 not in kept
    done = subprocess.run(list(map(str, program)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = lines(tmp_path / "rows")
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert all(row["overrides"] == ["--train.batch_tokens=256"] and row["initializer"] == "scaled" for row in rows)
    assert all("dev_loss_exchanged" in row and "dev_bleu" in row and "failed" not in row for row in rows)
    assert (tmp_path / "kept/tiny-1-scaled-0/checkpoints").is_dir()
