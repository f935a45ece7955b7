"""benchmarks/page.py: a warm translation, and memory that does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `page`")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_toy_model(environment, trained) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "page.py"), str(trained), "--requests", "300"]
    command += ["--texts", "red cat", "old dog sees blue bird", "big tree"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"] == 300 and found["translation_ms"] > 0
    assert found["memory_mib_after"] <= found["memory_mib"] + 20
