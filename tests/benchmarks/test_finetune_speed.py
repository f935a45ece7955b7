"""benchmarks/finetune.py on a toy: ours and Hugging Face's see the same loss before their updates."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import finetune  # noqa: E402
import finetune_systems  # noqa: E402


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")), reason="needs PyTorch"
)
def test_both_systems_train_the_same_model(environment) -> None:
    command = [sys.executable, "benchmarks/finetune.py", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    order = [(system, dtype) for system in ("ours", "huggingface") for dtype in ("float32", "bfloat16")]
    assert [(row["system"], row["dtype"]) for row in rows] == order
    assert all(row["texts_per_s"] > 0 and row["lengths"] == [8, 12] for row in rows)
    losses = [row["loss"] for row in rows]
    assert abs(losses[0] - losses[2]) <= 2e-5 and max(losses) - min(losses) < 0.02


def test_batches_are_as_those_of_training() -> None:
    batches = finetune_systems.labelled_batches("small", 32, finetune.LENGTHS)
    assert [batch["text"].shape for batch in batches] == [(32, length) for length in finetune.LENGTHS]
    for batch in batches:
        lengths = batch["part"].sum(1)
        assert batch["label"].shape == (32, 1) and set(np.unique(batch["label"])) == {1, 2}
        assert lengths.max() == batch["text"].shape[1] > lengths.min()
        np.testing.assert_array_equal(batch["text"] != 0, batch["part"] == 1)
