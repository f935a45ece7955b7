"""The Python example in README.md runs as printed. tests/docs/ has the commands."""

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
    assert found["logits_BTV"].shape[:2] == (1, 3)
    assert found["memory"].mask_BS.shape == (1, 4)
    assert len(block.splitlines()) <= 12
