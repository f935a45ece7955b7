"""benchmarks/saving.py from end to end on a toy: whether it measures both, not how long they take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_saving_is_measured_with_and_without_reading_back(environment, tmp_path: Path) -> None:
    program = [sys.executable, ROOT / "benchmarks/saving.py", "--quick", "--repeats", "2", "--folder", tmp_path]
    done = subprocess.run([*program, "--rows", tmp_path / "rows"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["model"] == "toy" and 0 < row["held_s"] < row["save_s"] and row["save_without_read_back_s"] > 0
    assert row["times"] == pytest.approx(row["save_s"] / row["save_without_read_back_s"], rel=0.05)
    assert json.loads((tmp_path / "rows").read_text()) == row and {"command", "commit", "device", "date"} <= row.keys()
    assert done.stderr.count(" without reading back\n") == 3 and not list(tmp_path.glob("saving-*"))
