"""Multi30k English to German on raw text, with the Tiny model of Wu et al. 2021, in half an hour on two cores.

    python train.py --config configs/multi30k_en_de.py --workdir runs/multi30k
    python -m transformer average runs/multi30k --last 5
    python evaluate.py --workdir runs/multi30k

Put the files in $TRANSFORMER_DATA/multi30k/raw. RESULTS.md has the score. Vocabulary, dropout and number of updates are
chosen for a short training; don't compare with the paper's record (8,000 updates of 8,192 tokens, tokenised text).
"""

import os

from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

raw = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "multi30k", "raw")

config = Config(
    model=ModelConfig(encoder_layers=4, decoder_layers=4, d_model=128, d_ff=256, heads=4, dropout=0.2),
    data=DataConfig(
        languages=("en", "de"),
        source=(f"{raw}/train.en.gz",),
        target=(f"{raw}/train.de.gz",),
        dev_source=f"{raw}/val.en.gz",
        dev_target=f"{raw}/val.de.gz",
        test_source=f"{raw}/test_2016_flickr.en.gz",
        test_target=f"{raw}/test_2016_flickr.de.gz",
        vocab_size=4_000,
        normalization="identity",  # unchanged text, as measured in RESULTS.md
        max_length=128,
        length_buckets=5,
    ),
    train=TrainConfig(
        steps=3_000,
        batch_tokens=4_096,
        peak_learning_rate=0.005,
        warmup_steps=800,
        log_every=50,
        eval_every=500,
        checkpoint_every=200,
        keep_last=10,
    ),
    decode=DecodeConfig(beam_size=5, length_penalty=1.0, length_normalization="fairseq"),
)
