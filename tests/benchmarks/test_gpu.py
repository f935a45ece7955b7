"""benchmarks/gpu.py from end to end on a toy: whether every part runs, not how fast."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"products", "kernel", "training", "decoding", "deterministic", "resume", "wmt_mini"}
PEERS = {"pytorch": ("torch",), "pytorch-compile": ("torch",), "ctranslate2": ("ctranslate2",)}
PEERS["huggingface"] = ("torch", "transformers", "safetensors")
# Runs two parts at once, of which one is fine; then one that hangs, with a child; then one that fails; and the first.
SCRIPT = """
import json, subprocess, sys, time

def row(**columns):
    print(json.dumps({"part": sys.argv[1], **columns}), flush=True)

if sys.argv[1] == "probe":
    row(backend="cpu", device="none", versions={})
if sys.argv[1] in ("fine", "last"):
    print("no row", flush=True)
    row(figure=1)
if sys.argv[1] == "hangs":
    row(figure=2)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(PATH, "w").write(str(child.pid))
    print("compiling", file=sys.stderr, flush=True)
    time.sleep(600)
if sys.argv[1] == "fails":
    sys.exit("out of memory")
"""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def alive(pid: int) -> bool:
    """Whether there is such a process, one that has ended and was not waited for left aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.long
def test_every_part_gives_its_rows(environment, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--quick", "--rows", path, "--seed", "1", "--commit", "abc"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
    rows = lines(path)
    assert {row["part"] for row in rows} == PARTS
    about = ("command", "commit", "device", "seed", "date", "versions")
    assert all(name in row for row in rows for name in about) and {row["seed"] for row in rows} == {1}
    assert not [row for row in rows if "failed" in row]
    skipped = {row["system"]: row["skipped"] for row in rows if "skipped" in row}
    for system, packages in PEERS.items():
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        assert skipped.pop(system, None) == (f"{absent[0]} is not installed" if absent else None)
    assert not skipped

    of = {part: [row for row in rows if row["part"] == part and "skipped" not in row] for part in PARTS}
    assert {row["what"] for row in of["products"]} == {"bfloat16", "float32", "bandwidth"}
    assert len(of["kernel"]) == 7 and all(row["ok"] for row in of["kernel"])
    assert [row["rows_nowhere"] > 0 for row in of["kernel"]] == [False] * 6 + [True]
    # One architecture, and one task: an untrained model's loss is about the logarithm of the vocabulary's size.
    assert len({row["parameters"] for row in of["training"]}) == 1
    assert all(6.5 < row["loss"] < 8 and 0 < row["of_product_rate"] < 1 for row in of["training"])
    assert {row["system"] for row in of["training"]} >= {"ours", "ours-plain"}
    assert {row["batch"] for row in of["decoding"] if row["system"] == "ours"} == {2, 4}
    assert all(row["tokens_per_s"] > 0 and row["of_bandwidth"] > 0 for row in of["decoding"])
    same = {(row["flag"], row["kernel"]): row["equal"] for row in of["deterministic"]}
    assert same == {(True, "plain"): True, (False, "cudnn"): True}
    (resumed,) = of["resume"]
    assert resumed["equal"] and resumed["exit_code"] == 143 and 0 < resumed["asked_at"] < resumed["updates"]
    assert [row["step"] for row in of["wmt_mini"] if "dev_bleu" in row] == [30, 60]
    assert all("13a" in row["dev_bleu_signature"] for row in of["wmt_mini"] if "dev_bleu" in row)


@pytest.mark.slow
def test_a_part_that_hangs_or_fails_costs_only_itself(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "PYTHONUNBUFFERED", "TOKENIZERS_PARALLELISM", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # main sets them: they are put back
    for name in ("TRANSFORMER_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "CUDA_CACHE_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    script, rows, child = tmp_path / "parts.py", tmp_path / "rows.jsonl", tmp_path / "child"
    script.write_text(SCRIPT.replace("PATH", repr(str(child))))
    parts = ("fine", "hangs", "fails", "last")
    stages = ((gpu.Run("fine", 60), gpu.Run("hangs", 10)), (gpu.Run("fails", 60),), (gpu.Run("last", 60),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in {"SCRIPT": script, "STAGES": stages, "PARTS": parts, "SLOWER": 1}.items():
        monkeypatch.setattr(gpu, name, value)
    began = time.monotonic()
    assert gpu.main(["--quick", "--rows", str(rows), "--log", str(tmp_path / "log")]) == 1
    assert time.monotonic() - began < 60
    found = [(row["part"], row.get("figure", row.get("failed"))) for row in lines(rows)]
    assert set(found[:3]) == {("fine", 1), ("hangs", 2), ("hangs", "stopped after its limit of 10 s: compiling")}
    assert found[3:] == [("fails", "ended with 1: out of memory"), ("last", 1)]
    assert "no row" in capfd.readouterr().out
    assert "compiling" in (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("gpu-*"))
    while alive(int(child.read_text())):  # no longer than its parent
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def test_a_cpu_takes_the_toy_and_time_that_is_over_is_told(environment, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--minutes", "0", "--parts", "products"]
    command += ["--rows", tmp_path / "rows.jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert "JAX sees no GPU: toy sizes, as with --quick" in done.stdout
    assert [row["failed"] for row in lines(tmp_path / "rows.jsonl")] == ["no time was left"]
