"""Generated English-German numbers, dates, times, amounts, measures and names: no data to download.

    python train.py --config configs/quickstart.py --workdir runs/quickstart
    python evaluate.py --workdir runs/quickstart

A model of a million parameters, for a few minutes on two cores. RESULTS.md has its score.
"""

from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(encoder_layers=2, decoder_layers=2, d_model=128, d_ff=512, heads=4, dropout=0.0),
    data=DataConfig(
        corpus="phrases", languages=("en", "de"), phrases=60_000, vocab_size=1_000, max_length=64, length_buckets=3
    ),
    train=TrainConfig(
        steps=1_700,
        batch_tokens=2_048,
        peak_learning_rate=0.004,
        warmup_steps=250,
        log_every=100,
        eval_every=850,
        eval_sentences=200,
        checkpoint_every=170,
    ),
    decode=DecodeConfig(beam_size=4),
)
