"""The benchmark of language models: both systems generate the same pieces, and do the same updates."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")), reason="needs PyTorch"
)
def test_both_systems_agree(environment, tmp_path) -> None:
    command = [sys.executable, "benchmarks/gpt.py", "--quick", "--json", "--dtypes", "float32", "--batches", "4"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["part"], row["system"]) for row in rows] == [
        (part, system) for part in ("generate", "train") for system in ("ours", "huggingface")
    ]
    assert [row["agreement"] for row in rows if row["part"] == "generate"] == ["100%", "100%"]
    assert all(row["tokens_per_s"] > 0 for row in rows)
