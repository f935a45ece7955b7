"""benchmarks/parsing_curve.py: a row for each number of trees, once."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_row_for_each_number_of_trees_once(environment, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    trees = "(S (NP (DT the) (NN {})) (VP (VBD saw) (NP (DT the) (NN {}))))\n"
    text = "".join(trees.format(first, second) for first in ("cat", "dog", "man") for second in ("park", "cat") * 9)
    (tmp_path / "treebank").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "treebank" / f"craft.{name}.mrg.gz").write_bytes(gzip.compress(text.encode()))
    command = [sys.executable, str(ROOT / "benchmarks" / "parsing_curve.py"), "--updates", "2"]
    command += ["--folder", "runs", "--rows", "rows.jsonl", "--pieces", "40", "--trees"]
    for counts in (["30"], ["30", "54"]):
        given = {**environment, "TRANSFORMER_DATA": str(tmp_path)}
        done = subprocess.run([*command, *counts], cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["part"], row["trees"], row["step"]) for row in rows] == [
        ("learning curve", 30, 2),
        ("learning curve", 54, 2),
    ]
    assert all(0 <= row["dev_f1"] <= 100 and row["commit"] for row in rows)
