"""A language without spaces between words: BLEU's tokeniser decides which checkpoint is the best."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from transformer.checkpoint import Checkpoints
from transformer.command_line import config_file
from transformer.tasks.translation import Translation

ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = "零一二三四五六七八九"
VERBS = [("I see", "我看见"), ("She buys", "她买"), ("We need", "我们需要"), ("He has", "他有")]
NOUNS = [("apples", "苹果"), ("dogs", "狗"), ("books", "书"), ("cars", "汽车"), ("chairs", "椅子"), ("letters", "信")]
PLACES = [("in Berlin", "在柏林"), ("at home", "在家"), ("in the garden", "在花园里"), ("at the station", "在车站")]
CONFIG = """
from transformer.config import Config, DataConfig, ModelConfig, TrainConfig

folder = {folder!r}
config = Config(
    model=ModelConfig(encoder_layers=2, decoder_layers=2, d_model=64, d_ff=256, heads=4, dropout=0.0),
    data=DataConfig(
        source=(f"{{folder}}/train.en",),
        target=(f"{{folder}}/train.zh",),
        dev_source=f"{{folder}}/dev.en",
        dev_target=f"{{folder}}/dev.zh",
        languages=("en", "zh"),
        vocab_size=400,
        max_length=48,
        length_buckets=1,
        workers=1,
    ),
    train=TrainConfig(
        steps=400,
        batch_tokens=2048,
        peak_learning_rate=0.005,
        warmup_steps=100,
        log_every=50,
        eval_every=100,
        checkpoint_every=100,
        patience=2,
    ),
)
"""


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, dev and test text and a config file."""
    folder, draw = tmp_path_factory.mktemp("chinese"), random.Random(0)
    pairs: dict[str, str] = {}
    while len(pairs) < 6_200:
        verb, noun, place = draw.choice(VERBS), draw.choice(NOUNS), draw.choice(PLACES)
        digits = [draw.randrange(10) for _ in range(draw.randint(1, 4))]
        english = f"{verb[0]} {' '.join(ENGLISH[d] for d in digits)} {noun[0]} {place[0]}."
        pairs[english] = f"{verb[1]}{place[1]}{''.join(DIGITS[d] for d in digits)}个{noun[1]}。"
    rows = list(pairs.items())
    for name, part in (("train", rows[:6_000]), ("dev", rows[6_000:6_100]), ("test", rows[6_100:])):
        for side, lines in zip(("en", "zh"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{side}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


def test_a_target_without_spaces_is_told_where_no_language_is_named(chinese: Path) -> None:
    config = (chinese / "config.py").read_text()
    (chinese / "unnamed.py").write_text(config.replace('languages=("en", "zh"),', ""))
    assert Translation.build(config_file(str(chinese / "config.py"))).text_doubts() == []
    (told,) = Translation.build(config_file(str(chinese / "unnamed.py"))).text_doubts()
    assert told.startswith("dev.en: its references have no spaces between words, which BLEU's tokeniser 13a needs")


@pytest.mark.slow
@pytest.mark.long
def test_the_best_checkpoint_of_a_chinese_model_is_good(chinese: Path, call, tmp_path: Path) -> None:
    done = call("train.py", "--config", chinese / "config.py", "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.best() >= 300
    scores = {step: checkpoints.at(step).progress["dev_bleu"] for step in checkpoints.steps()}
    assert scores[100] < scores[checkpoints.best()]
    assert "|tok:zh|" in checkpoints.at(100).progress["dev_bleu_signature"]
    files = ("--source", chinese / "test.en", "--reference", chinese / "test.zh")
    done = call("evaluate.py", "--workdir", tmp_path / "run", *files, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["checkpoint"] == str(checkpoints.best())
    assert result["bleu"] > 97
    assert "|tok:zh|" in result["signature"]
