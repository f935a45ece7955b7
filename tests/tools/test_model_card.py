"""MODEL_CARD.md of every format: what the checkpoint holds, and what is not known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_runs import LINES, language_run, masked_run, translation_run

from transformer.checkpoint import Checkpoints
from transformer.config import (
    RUNS,
    ByteLatentConfig,
    Config,
    DataConfig,
    EntropyConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from transformer.data.vocabularies import Characters
from transformer.tools.model_card import TASKS, About, architecture, files_about

pytest.importorskip("safetensors", reason="needs safetensors")
SIGNATURE = r"`nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:[\d.]+`"


def card_of(call, workdir: Path, folder: Path, to: str, *more: str) -> str:
    done = call("transformer", "export", workdir, folder, "--to", to, *more)
    assert done.code == 0, done.err
    assert "MODEL_CARD.md" in (folder / "README.md").read_text()
    return (folder / "MODEL_CARD.md").read_text()


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_a_trained_run_tells_what_it_knows(call, workdir: Path, tiny, tmp_path: Path) -> None:
    assert call("evaluate.py", "--workdir", workdir, "--checkpoint", "last").code == 0
    assert call("evaluate.py", "--workdir", workdir, "--checkpoint", "last", "--decode.beam_size=1").code == 0
    (workdir / "scores.jsonl").open("a").write('{"checkpoint": "80", "bleu": 12.3}\nno json\n')
    card = card_of(call, workdir, tmp_path / "out", "safetensors", "--checkpoint", "last")
    opened = Checkpoints(workdir).at(120)
    for expected in (
        "- Task: `translation`: it translates texts.",
        "1 encoder and 1 decoder layers, width 32, feed-forward width 64, 2 heads",
        f"step 120, sha256 of its manifest {opened.digest}",
        f"sha256 of the training data, as the program reads it: {opened.progress['data_digest']}",
        f"sha256 of the development set, as the program reads it: {opened.progress['dev_digest']}",
        (workdir / "tokenizer.sha256").read_text().strip(),
        "- `data.source`: train.en\n",
        "- Updates: 120, of at most 512 pieces on each side",
    ):
        assert expected in card, expected
    scores = section(card, "Scores")
    assert re.search(rf"^- development, bleu: [\d.e-]+ \({SIGNATURE}\)$", scores, re.M)
    assert re.search(r"^- development, chrf: [\d.e-]+ \(`nrefs:1\|.*nc:6.*`\)$", scores, re.M)
    assert re.search(rf"^- test.en, bleu: [\d.e-]+ \({SIGNATURE}\)$", scores, re.M) and "12.3" not in scores
    assert re.search(rf"^- test.en, bleu: [\d.e-]+ \({SIGNATURE[:-1]}, decode.beam_size 1`\)$", scores, re.M)
    assert re.search(r"^- test.en, chrf: [\d.e-]+ \(`nrefs:1\|.*nc:6.*`\)$", scores, re.M)
    assert "licence" in section(card, "Not known") and "test set" not in section(card, "Not known")
    assert str(tiny.folder) not in card
    config = json.loads(re.search(r"```json\n(.*?)```", card, re.S)[1])
    assert config["data"]["dev_source"] == "dev.en" and config["model"]["d_model"] == 32


def test_what_is_not_there_is_said_to_be_unknown(call, trained: Path, tmp_path: Path) -> None:
    workdir = translation_run(tmp_path / "run")
    card = card_of(call, workdir, tmp_path / "out", "safetensors")
    unknown = section(card, "Not known")
    for expected in ("no digest", "evaluate.py has stored none", "machine", "licence"):
        assert expected in unknown, expected
    assert section(card, "Scores").strip() == "None: this checkpoint was not scored."


@pytest.mark.parametrize("to", ["hf-marian", "hf-gpt2", "hf-bert"])
def test_hugging_face_s_folders_have_one(call, trained: Path, to: str, tmp_path: Path) -> None:
    workdir = trained
    if to == "hf-gpt2":
        model = ModelConfig(
            *(0, 1), d_model=8, d_ff=8, heads=2, positions="learned", embedding_scale=False, pre_norm=True
        )
        workdir = language_run(tmp_path / "run", Characters("".join(LINES)), model)
    if to == "hf-bert":
        workdir = masked_run(tmp_path / "run", "pretraining")
    card = card_of(call, workdir, tmp_path / "out", to)
    assert f"export --to {to}`" in card and "from_pretrained(" in (tmp_path / "out" / "README.md").read_text()


def test_an_average_is_scored_only_with_its_own_steps(call, workdir: Path, tmp_path: Path) -> None:
    assert call("transformer", "average", workdir, "--last", "2").code == 0
    lines = [
        {"checkpoint": "average", "averaged_steps": steps, "bleu": x} for steps, x in (([100, 120], 55), ([1], 66))
    ]
    (workdir / "scores.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    card = card_of(call, workdir, tmp_path / "out", "safetensors")
    assert "the average of several checkpoints" in card and "- Averaged checkpoints: 100, 120" in card
    assert "bleu: 55" in card and "66" not in section(card, "Scores")


def test_each_task_has_words() -> None:
    assert TASKS.keys() == RUNS.keys()
    for kind in RUNS.values():
        config = kind()
        about = About(config, {"step": 0, "vocab_size": 5}, "7", "d" * 64, 1_000, None, ())
        card = files_about(about, "safetensors", "text")["MODEL_CARD.md"].decode()
        assert TASKS[config.task] in card and "1,000" in card


def test_architectures_in_words() -> None:
    assert architecture(ModelConfig()).startswith("Transformer, 6 encoder and 6 decoder layers, width 512")
    assert architecture(ModelConfig(encoder_layers=0)).startswith("Transformer, a decoder alone of 6 layers")
    assert architecture(ModelConfig(decoder_layers=0)).startswith("Transformer, an encoder alone of 6 layers")


def test_files_are_named_without_their_folders_and_languages_told() -> None:
    data = DataConfig(source=("/home/me/a.en", "gs://b/c.en"), languages=("en", "de"))
    about = About(Config(data=data), {"step": 3, "vocab_size": 5}, "3", "d" * 64, 1, None, ())
    card = files_about(about, "jax", "text")["MODEL_CARD.md"].decode()
    assert "- `data.source`: a.en, c.en" in card and "/home/me" not in card and "gs://" not in card
    assert "it translates texts from en to de." in card
    named = {"entropy": EntropyConfig(init_from="/home/me/run"), "data": TextConfig(cache_dir="/home/me/cache")}
    about = About(ByteLatentConfig(**named), {"step": 3, "vocab_size": 260}, "3", "d" * 64, 1, None, ())
    card = files_about(about, "jax", "text")["MODEL_CARD.md"].decode()
    assert "/home/me" not in card and '"init_from": "run"' in card and '"cache_dir": "cache"' in card


def test_names_that_are_not_utf8_are_escaped() -> None:
    data = DataConfig(source=("/data/a\udcff.en", "b\u202e\n.en"), dev_source="c\udc80.en")
    start = TrainConfig(init_from="runs/x\udcff")
    about = About(Config(data=data, train=start), {"step": 3, "vocab_size": 5}, "3", "d" * 64, 1, None, ())
    card = files_about(about, "jax", "text")["MODEL_CARD.md"].decode()
    assert r"- `data.source`: a\udcff.en, b\u202e\n.en" in card and r"c\udc80.en" in card and r"x\udcff" in card
    assert json.loads(re.search(r"```json\n(.*?)```", card, re.S)[1])["data"]["source"][0] == "a\udcff.en"
