"""The WMT14 pipeline from download to BLEU: the real commands on small archives with the real layout, no TensorFlow."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from wmt_archives import files, pack, sentence, serve

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--data.vocab_size", "500"),
    *("--data.max_length", "64"),
    *("--model.d_model", "16"),
    *("--model.d_ff", "32"),
    *("--model.heads", "2"),
    *("--model.encoder_layers", "1"),
    *("--model.decoder_layers", "1"),
    *("--train.steps", "4"),
    *("--train.batch_tokens", "512"),
    *("--train.eval_every", "2"),
    *("--train.checkpoint_every", "2"),
    *("--train.warmup_steps", "10"),
    *("--data.length_buckets", "2"),
    *("--decode.beam_size", "2"),
    *("--decode.max_extra_length", "4"),
]


@pytest.mark.slow
def test_train_and_evaluate_on_wmt14(tmp_path: Path) -> None:
    assert importlib.util.find_spec("tensorflow") is None, "this must be shown in an environment without TensorFlow"
    workdir = str(tmp_path / "run")
    with serve(pack(files())) as server:
        environment = server.environment(TRANSFORMER_CACHE=str(tmp_path / "cache"))

        def call(script: str, *arguments: str) -> subprocess.CompletedProcess:
            command = server.command(ROOT / script, *arguments)
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            return done

        config = ("--config", str(ROOT / "configs/wmt14_en_de.py"), "--workdir", workdir)
        trained = call("train.py", *config, "--data.tfds_dir", str(tmp_path / "tfds"), *SMALL)
        assert len(server.requests) > 0
        evaluated = call("evaluate.py", "--workdir", workdir, "--json")

    result = json.loads(evaluated.stdout)
    assert result["test_set"] == "newstest2014 (full)"
    assert result["sentences"] == 23
    assert 0 <= result["bleu"] <= 100
    assert "tok:13a" in result["signature"]
    assert "bleu_tokenized_compound_split" in result
    # The sets in the workdir equal those in the archive, in its order, and the log has their digests.
    references = "".join(sentence(i)["de"] + "\n" for i in range(950_000, 950_023))
    assert (tmp_path / "run/sets/test.reference").read_text() == references
    assert f"23 lines, sha256 {hashlib.sha256(references.encode()).hexdigest()}" in trained.stderr
    assert (tmp_path / "run/sets/dev.source").read_text().count("\n") == 20
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps if "dev_bleu" in entry] == [2, 4]
