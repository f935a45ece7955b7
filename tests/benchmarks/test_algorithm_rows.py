"""benchmarks/algorithms.py: a row for each seed, once; lengths in fives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_lengths_are_grouped_in_fives() -> None:
    import algorithms

    assert algorithms.grouped({n: float(n <= 7) for n in range(1, 12)}) == [(3, 1.0), (8, 0.4), (11, 0.0)]


@pytest.mark.slow
def test_a_row_for_each_seed_once(environment, tmp_path: Path) -> None:
    """AND is right in a minute; the second call trains nothing."""
    script = str(ROOT / "benchmarks" / "algorithms.py")
    command = [sys.executable, script, "--only", "and", "--seeds", "1", "--folder", "runs", "--rows", "rows.jsonl"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (row["part"], row["seed"], row["updates"], row["patterns_right"]) == ("and", 0, 400, 31)
    assert row["command"].endswith("--only and --seeds 1 --folder runs")
