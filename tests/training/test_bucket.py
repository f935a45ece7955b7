"""A workdir in a bucket, on a storage server of our own on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_storage import FakeStorage

from transformer.checkpoint import Checkpoints
from transformer.config import UserError

ROOT = Path(__file__).parents[2]


def test_what_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # importing it fails, as where it is not installed
    with pytest.raises(UserError, match=r"^gs://bucket/run: .*gcsfs"):
        Checkpoints("gs://bucket/run")


@pytest.mark.slow
def test_train_resume_average_and_evaluate_in_a_bucket(tiny, trained: Path, environment, tmp_path: Path) -> None:
    server = FakeStorage()
    environment = {name: value for name, value in environment.items() if "proxy" not in name.lower()} | {
        "STORAGE_EMULATOR_HOST": server.url,
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GS_TOKEN": "anon",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks the real server
    }

    def call(*command: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    train = (ROOT / "train.py", "--config", tiny.config, "--workdir", "gs://bucket/runs/one")
    done = call(*train, "--train.steps", 25, "--train.eval_every", 40)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "TensorBoard's files of gs://bucket/runs/one are on this machine, in /" in done.stderr
    assert "runs/one/checkpoints/00000025/manifest.json" in server.objects
    before = set(server.objects)
    done = call(*train, "--train.steps", 41, "--train.eval_every", 40)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from step 25" in done.stderr
    # The numbers are those of a local workdir. (At 25 and 41, the ends, this log has entries of its own.)
    ours = [json.loads(line) for line in server.objects["runs/one/metrics.jsonl"][0].decode().splitlines()]
    local = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in ours if entry["step"] in (7, 14, 21)] == [entry["loss"] for entry in local[:3]]
    assert [entry["dev_loss"] for entry in ours if entry["step"] == 40] == [local[5]["dev_loss"]]
    assert before - set(server.objects) == set()

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
    assert list(tmp_path.iterdir()) == []  # nothing was left here
