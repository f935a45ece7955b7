"""benchmarks/decode.py from end to end on a toy: whether all systems run and agree, not how fast they are."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ("torch", "transformers", "ctranslate2", "safetensors")
missing = [name for name in PEERS if importlib.util.find_spec(name) is None]


def decode(environment, *arguments) -> subprocess.CompletedProcess:
    program = [sys.executable, ROOT / "benchmarks/decode.py", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install -r benchmarks/requirements.txt")
def test_all_systems_run_and_agree(environment, tmp_path) -> None:
    done = decode(environment, "--quick", "--json", "--workdir", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    systems = {("ours", "float32"), ("ours", "bfloat16"), ("ours", "int8")}
    systems |= {("huggingface", "float32"), ("huggingface", "bfloat16")}
    systems |= {("ctranslate2", "float32"), ("ctranslate2", "int8")}
    cells = {(row["system"], row["dtype"], row["mode"], row["batch"]) for row in rows}
    assert cells == {(*system, mode, batch) for system in systems for mode in ("fixed", "spread") for batch in (1, 4)}
    assert all(row["tokens_per_s"] > 0 and row["peak_mib"] > 0 and row["beam"] == 4 for row in rows)
    assert {row["agreement"] for row in rows if row["dtype"] == "float32"} == {1.0}

    other = decode(environment, "--quick", "--workdir", tmp_path / "work", "--model.d_ff", 96)
    assert (other.returncode, other.stderr.splitlines()[-1].split(":")[0]) == (2, "error")
    assert "made in another way" in other.stderr


@pytest.mark.slow
def test_the_variants_run(environment) -> None:
    done = decode(environment, "--quick", "--variants", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    kinds = ["MHA", "GQA", "MQA", "CLA2", "MQA+CLA2"]
    assert [(row["variant"], row["length"]) for row in rows] == [(kind, length) for length in (8, 16) for kind in kinds]
    assert all(row["system"] == "ours" and row["tokens_per_s"] > 0 for row in rows)


@pytest.mark.skipif(not missing, reason="all peers are installed")
def test_a_missing_peer_is_told_in_one_line(environment, tmp_path) -> None:
    done = decode(environment, "--workdir", tmp_path / "work")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {missing[0]} is missing: pip install -r benchmarks/requirements.txt\n"
