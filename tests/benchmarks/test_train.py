"""benchmarks/train.py from end to end on a toy: whether all systems do the same work, not how fast they are."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
torch_is_missing = importlib.util.find_spec("torch") is None


def rows(environment, *arguments) -> list[dict]:
    program = [sys.executable, ROOT / "benchmarks/train.py", "--quick", "--json", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(torch_is_missing, reason="needs torch: pip install -r benchmarks/requirements.txt")
def test_all_systems_do_the_same_updates(environment) -> None:
    found = rows(environment, "--dtypes", "float32", "bfloat16")
    systems = "ours", "pytorch", "pytorch-compile"
    assert [(r["dtype"], r["system"]) for r in found] == [(d, s) for d in ("float32", "bfloat16") for s in systems]
    assert all(r["tokens_per_s"] > 0 and r["peak_mib"] > 0 and r["model"] == "small" for r in found)
    # The same work: as many parameters, but for the biases that nn.Transformer's attention has and the paper's has not.
    ours, theirs = found[0]["parameters"], found[1]["parameters"]
    assert theirs - ours == 2 * 4 * 64 + 2 * 8 * 64 + 2 * 2 * 64
    # An untrained model's loss is about the logarithm of the vocabulary's size.
    assert all(6 < r["loss"] < 9 for r in found)


@pytest.mark.slow
def test_the_pipeline_dropout_and_virtual_devices(environment, tmp_path: Path) -> None:
    for name in ("a.en", "a.de"):  # a line more for str.splitlines
        with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as file:
            file.write("".join(f"line {i} of some text\u2028and {i * 7919 % 10007:x} more\n" for i in range(2_000)))
    found = rows(environment, "--part", "pipeline", "--text", tmp_path / "a.en.gz", tmp_path / "a.de.gz")
    assert {r["part"] for r in found} == {"tokenising", "batches"}
    packed, bucketed = (r for r in found if r["part"] == "batches")
    assert packed["packing"] and float(packed["padding"][:-1]) < float(bucketed["padding"][:-1])
    found = rows(environment, "--part", "dropout", "--dtypes", "float32")
    assert [r["dropout"] for r in found] == [0.1, 0.0]
    assert found[0]["of_a_step"].endswith("%")
    found = rows(environment, "--part", "scaling", "--dtypes", "float32")
    assert [r["devices"] for r in found] == [1, 2, 4, 8]
    assert all(r["tokens_per_s"] > 0 for r in found)


@pytest.mark.skipif(not torch_is_missing, reason="torch is installed")
def test_a_missing_peer_is_told_in_one_line(environment) -> None:
    program = [sys.executable, ROOT / "benchmarks/train.py", "--quick"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: torch is missing: pip install -r benchmarks/requirements.txt\n"
