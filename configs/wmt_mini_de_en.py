"""The model of configs/wmt_mini_en_de.py from German to English, on the same text.

    python train.py --config configs/wmt_mini_de_en.py --workdir runs/wmt_mini_de_en
    python -m transformer average runs/wmt_mini_de_en --last 5
    python evaluate.py --workdir runs/wmt_mini_de_en --breakdown

Has not been run.
"""

import os

from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

root = os.environ.get("TRANSFORMER_DATA", "data")
# How often each file is read in an epoch. Dev and test are news.
weights = {"tatoeba": 1.0, "europarl": 2.0, "ted": 2.0, "chat": 1.0, "news": 3.0}


def wmt_mini(language: str) -> tuple[str, ...]:
    """The files of one language, in the order of `weights`."""
    return tuple(os.path.join(root, "wmt_mini", f"{name}.{language}.gz") for name in weights)


def newstest(year: int, language: str) -> str:
    """The file of one language of a test set."""
    return os.path.join(root, "newstest", f"newstest{year}.en-de.{language}")


config = Config(
    # A deep encoder and a shallow decoder: as good as equal depths, and translates faster (Kasai et al. 2021).
    model=ModelConfig(encoder_layers=6, decoder_layers=2, d_model=256, d_ff=1_024, heads=4, dropout=0.2),
    data=DataConfig(
        languages=("de", "en"),
        source=wmt_mini("de"),
        target=wmt_mini("en"),
        weights=tuple(weights.values()),
        dev_source=newstest(2013, "de"),
        dev_target=newstest(2013, "en"),
        test_source=newstest(2014, "de"),
        test_target=newstest(2014, "en"),
        vocab_size=8_000,
        max_length=128,
        packing=True,
    ),
    train=TrainConfig(
        steps=8_000,
        batch_tokens=6_144,
        peak_learning_rate=0.002,
        warmup_steps=1_000,
        log_every=50,
        eval_every=1_000,
        checkpoint_every=250,
        keep_last=10,
    ),
    decode=DecodeConfig(beam_size=4, length_penalty=0.6, length_normalization="paper", max_extra_length=50),
)
