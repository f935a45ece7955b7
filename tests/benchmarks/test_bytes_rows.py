"""benchmarks/bytes.py: models of equal training FLOPs, flipped letters, a row for each model once."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transformer.training.flops import byte_latent_flops, update_flops

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
bench = importlib.import_module("bytes")


def test_the_models_have_equal_training_flops() -> None:
    flops = {name: bench.training_flops(bench.config_of(config)) for name, config in bench.MODELS.items()}
    for name, count in flops.items():
        assert count == pytest.approx(flops["bytes"], rel=0.02), name
    one, other = (bench.config_of(bench.MODELS[f"{kind} patches"]) for kind in ("entropy", "static"))
    assert one.model.latent == other.model.latent and one.data == other.data
    train = bench.config_of(bench.MODELS["bytes"]).train
    assert one.train.batch_tokens == other.train.batch_tokens == train.batch_tokens


def test_flops_are_those_of_the_products() -> None:
    """Counted by hand for a small model: all (m, k) times (k, n) of a pass, three times; entropies once."""
    import dataclasses

    config = bench.config_of(bench.MODELS["entropy patches"]).model.with_vocabulary(260)
    sizes = {"d_model": 8, "d_ff": 10, "heads": 2}
    latent = dataclasses.replace(config.latent, **sizes | {"d_model": 16}, decoder_layers=3)
    patches = dataclasses.replace(config.patches, bytes=2.0, room=1.0, spare=0)
    config = dataclasses.replace(config, **sizes, decoder_layers=1, latent=latent, patches=patches)
    T, P, D, E, F = 11, 6, 8, 16, 10  # at most 1 + 10 / 2 patches, each of two vectors of width D

    def block(n: int, width: int) -> int:
        return 2 * n * (4 * width * width + 2 * width * F) + 2 * 2 * n * n * width

    products = 2 * block(T, D) + 3 * block(P, E)
    products += 2 * P * D * E  # queries of patches
    products += 2 * 2 * P * 2 * D * D + 2 * T * 2 * D * D + 2 * 2 * 2 * P * T * D  # patches read bytes
    products += 2 * 2 * T * D * D + 2 * 2 * P * 2 * D * D + 2 * 2 * T * 2 * P * D  # bytes read patches
    products += 2 * T * D * 260
    entropies = update_flops(config.entropy.with_vocabulary(260), 4, 0, T) / 3
    assert byte_latent_flops(config, 4, T) == pytest.approx(3 * 4 * products + entropies)


def test_letters_are_flipped() -> None:
    text = "The Cat, sees: 9 Dögs\n" * 500
    assert bench.flipped(text, 0.0) == text and bench.flipped(text, 1.0).swapcase() == text.replace("ö", "Ö")
    changed = np.array([a != b for a, b in zip(text, bench.flipped(text, 0.2), strict=True)])
    letters = np.array([c.isascii() and c.isalpha() for c in text])
    assert changed[letters].mean() == pytest.approx(0.2, abs=0.02) and not changed[~letters].any()
    assert bench.flipped(text, 0.2) == bench.flipped(text, 0.2)


@pytest.mark.slow
def test_each_model_has_its_rows_once(environment, tmp_path: Path) -> None:
    (tmp_path / "tiny_shakespeare").mkdir()
    lines = [f"FIRST {i % 7}:\nSpeak, speak; the {['wolf', 'sheep', 'river'][i % 3]} is here.\n" for i in range(300)]
    (tmp_path / "tiny_shakespeare" / "input.txt").write_text("\n".join(lines))
    script = str(ROOT / "benchmarks" / "bytes.py")
    command = [sys.executable, script, "--quick", "--folder", "runs", "--rows", "rows.jsonl"]
    for only in (["--only", "patches", "model"], []):
        done = subprocess.run(
            *([*command, *only],),
            **{"cwd": tmp_path, "env": environment | {"TRANSFORMER_DATA": str(tmp_path)}},
            **{"capture_output": True, "text": True},
        )
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    patches, *scored = [row for row in rows if row["part"] != "flips"]
    assert [row["model"] for row in scored] == list(bench.MODELS)
    assert all(row["updates"] == 4 and 0 < row["bits_per_byte"] < 9 for row in scored)
    flips = [row for row in rows if row["part"] == "flips"]
    assert [(row["model"], row["share"]) for row in flips] == [(model, bench.SHARES[-1]) for model in bench.MODELS]
    assert len(patches["entropies"]) == len(patches["text"].encode())
    assert all(0 <= i < len(patches["text"]) for i in (*patches["begins"], *patches["static"]))
    hard = [i for i, value in enumerate(patches["entropies"]) if value > patches["threshold"] - 0.001]  # rounded
    assert set(patches["begins"]) <= set(hard) or patches["begins"] == []
    assert not re.findall(r"(?<![\w.~/-])/[\w.-]+/", json.dumps(rows))
