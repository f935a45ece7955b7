"""A disk that reports success, but holds something else: what is not as it was written is never used or sealed."""

from pathlib import Path

import pytest

TEXT = """
from transformer.config import GPT2, LanguageModelConfig, TextConfig, TrainConfig
import dataclasses

config = LanguageModelConfig(
    model=dataclasses.replace(GPT2, decoder_layers=1, d_model=8, d_ff=8, heads=1, max_positions=16),
    data=TextConfig(text=({text!r},), pieces="characters", context=16, dev_share=0.1),
    train=TrainConfig(steps=2, batch_tokens=64, warmup_steps=1),
)
"""


@pytest.mark.parametrize("file", ["tokenizers/*.model", "tokens/*.tokens", "tokens/*.npy", "sets/*", "config.json*"])
def test_training_refuses_it(call, tiny, tmp_path: Path, lying_disk, file: str) -> None:
    lying_disk(f"{tmp_path}*/{file}")
    options = ("--workdir", tmp_path / "run", "--data.cache_dir", tmp_path / "cache")
    done = call("train.py", "--config", tiny.config, *options, "--train.steps", 1, "--train.warmup_steps", 1)
    assert done.code == 2 and "it does not hold what was written" in done.err.splitlines()[-1], done.err


@pytest.mark.parametrize("file", ["vocabularies/*", "texts/*/tokens", "texts/*.npy", "texts/*/meta.json", "*.text*"])
def test_training_of_a_language_model_refuses_it(call, tmp_path: Path, lying_disk, file: str) -> None:
    text, config = tmp_path / "text", tmp_path / "config.py"
    text.write_text("the old dog sees a red house\n" * 40)
    config.write_text(TEXT.format(text=str(text)))
    lying_disk(f"{tmp_path}*/{file}")
    options = ("--workdir", tmp_path / "run", "--data.cache_dir", tmp_path / "cache")
    done = call("train.py", "--config", config, *options)
    assert done.code == 2 and "it does not hold what was written" in done.err.splitlines()[-1], done.err


def test_a_conversion_with_sets_refuses_it(call, trained: Path, tmp_path: Path, lying_disk) -> None:
    lying_disk(f"{tmp_path}*/sets/*")
    done = call("transformer", "convert", trained, tmp_path / "out", "--kv-heads", 1)
    assert done.code == 2 and "it does not hold what was written" in done.err.splitlines()[-1], done.err
    assert not list(tmp_path.iterdir())


def test_packed_rows_are_used_but_not_kept(tmp_path: Path, lying_disk, caplog, monkeypatch) -> None:
    import numpy as np

    from transformer.data import packing

    monkeypatch.setattr(packing, "_CACHED_FROM", 1)
    lengths = np.array([3, 4, 5, 6], np.int32)
    lying_disk("*/packed-*")
    rows = packing.pack_cached(lengths, lengths, (9, 9), 0, tmp_path)
    for ours, expected in zip(rows, packing.pack(lengths, lengths, (9, 9), 0), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert "does not hold what was written" in caplog.text and not list(tmp_path.iterdir())
