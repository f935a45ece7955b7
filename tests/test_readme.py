"""The Python examples in README.md run as printed."""

import os
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_block_runs(trained: Path, tmp_path: Path, monkeypatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs")
    os.symlink(trained, "runs/quickstart")
    found: dict = {}
    exec(compile(block, str(README), "exec"), found)
    assert found["logits_BTV"].shape[:2] == found["target_BT"].shape
    assert found["memory"].mask_BS.shape == found["source_BS"].shape
