"""benchmarks/start_up.py: the same batches from a fresh plan and from the cached one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_starts(environment, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "start_up.py"), "--pairs", "210000", "--rows", "rows.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, bucketed = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["batches"] == second["batches"] and first["padding"] == second["padding"] < bucketed["padding"]
    assert second["cpu_seconds"] < first["cpu_seconds"]  # its rows are cached
    assert 0 < first["peak_gib"] < 1
