"""The model whose decoding is timed: the paper's base size over 8,000 pieces, trained briefly.

decode.py trains it on lines of one to eight generated phrases, so that outputs have real lengths. No dropout and no
label smoothing: what counts is that outputs are decided clearly, not that they are good.
"""

from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(dropout=0.0),
    data=DataConfig(vocab_size=8_000, max_length=100, length_buckets=6),
    train=TrainConfig(
        steps=600,
        batch_tokens=2_048,
        peak_learning_rate=7e-4,
        warmup_steps=200,
        label_smoothing=0.0,
        log_every=20,
        eval_every=600,
        eval_sentences=50,
        checkpoint_every=150,
        keep_last=1,
    ),
    decode=DecodeConfig(length_normalization="none"),
)
