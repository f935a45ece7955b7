"""A workdir in a bucket, on a fake storage server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_storage import FakeStorage

from transformer.checkpoint import Checkpoints
from transformer.config import UserError

ROOT = Path(__file__).parents[2]


def test_what_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # so that its import fails, as if it were not installed
    with pytest.raises(UserError, match=r"^gs://bucket/run: .*gcsfs"):
        Checkpoints("gs://bucket/run")


@pytest.fixture
def server() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def call(server: FakeStorage, environment, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """`call("train.py", ...)`: run a command in a separate process that uses the server."""
    environment = {name: value for name, value in environment.items() if "proxy" not in name.lower()} | {
        "STORAGE_EMULATOR_HOST": server.url,
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GS_TOKEN": "anon",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # this feature would query the real server
    }

    def call(*command: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return call


def folders(server: FakeStorage, run: str) -> set[str]:
    """The names in the folder of a run's checkpoints."""
    start = f"{run}/checkpoints/"
    return {name.removeprefix(start).partition("/")[0] for name in server.objects if name.startswith(start)}


@pytest.mark.slow
def test_saves_and_removals_that_are_broken_off_in_a_bucket(server: FakeStorage, call) -> None:
    for harm, left in (
        ("killed", {"00000015", "00000017.interrupted", "average"}),
        ("killed in an average", {"00000020", "average.next"}),
        ("mended", {"00000025.damaged", "average"}),
    ):
        done = call(Path(__file__).with_name("saves_in_a_bucket.py"), harm)
        assert done.returncode == (9 if "killed" in harm else 0), done.stderr[-3000:]
        assert folders(server, "run") == left
    assert not [name for name in server.objects if name.endswith("unfinished")]


@pytest.mark.slow
def test_train_resume_average_and_evaluate_in_a_bucket(tiny, trained: Path, server, call, tmp_path: Path) -> None:
    train = (ROOT / "train.py", "--config", tiny.config, "--workdir", "gs://bucket/runs/one", "--train.keep_last", 2)
    done = call(*train, "--train.steps", 25, "--train.eval_every", 40, "--train.checkpoint_every", 10)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "TensorBoard's files of gs://bucket/runs/one are on this machine, in /" in done.stderr
    assert "runs/one/checkpoints/00000025/manifest.json" in server.objects
    assert folders(server, "runs/one") == {"00000020", "00000025"}  # the last two of three
    done = call(*train, "--train.steps", 41, "--train.eval_every", 40)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from step 25" in done.stderr
    # The numbers are those of a local workdir. (Only this log has entries at 25 and 41, where its runs ended.)
    ours = [json.loads(line) for line in server.objects["runs/one/metrics.jsonl"][0].decode().splitlines()]
    local = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in ours if entry["step"] in (7, 14, 21)] == [entry["loss"] for entry in local[:3]]
    assert [entry["dev_loss"] for entry in ours if entry["step"] == 40] == [local[5]["dev_loss"]]
    left = folders(server, "runs/one")
    assert {"00000041"} < left <= {"00000025", "00000040", "00000041"}  # 40 is there if its score is better

    done = call(*train, "--train.steps", 41, "--train.seed", 3)
    assert done.returncode == 2
    assert "train.seed is 0 there, 3 now" in done.stderr
    done = call("-m", "transformer", "average", "gs://bucket/runs/one", "--last", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    done = call(ROOT / "evaluate.py", "--workdir", "gs://bucket/runs/one", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["checkpoint"] == "average"
    stored = json.loads(server.objects["runs/one/scores.jsonl"][0])
    assert stored == json.loads(done.stdout) | {"time": stored["time"]}

    server.forbidden = True
    done = call(*train)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr[-3000:]
    assert done.stderr.startswith("error: gs://bucket/runs/one cannot be reached (OSError: Forbidden: ")
    assert list(tmp_path.iterdir()) == []  # no file was left on this machine
