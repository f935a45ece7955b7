"""The model whose decoding is timed: the paper's base size over 8,000 pieces, trained briefly.

decode.py trains it on lines of one to eight generated phrases, so that outputs have real lengths. No dropout and no
label smoothing: what counts is that outputs are decided clearly, not that they are good. Six layers on
each side trained from the start were slow to leave the plateau of the first updates, two were quick: so two are trained
first (`FIRST`), each is followed by two that change next to nothing (Chen et al. 2016, Net2Net), and all are trained on
(`config`).
"""

from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(dropout=0.0),
    data=DataConfig(vocab_size=8_000, max_length=100, length_buckets=6),
    train=TrainConfig(
        steps=800,
        batch_tokens=2_048,
        peak_learning_rate=2e-4,
        warmup_steps=30,
        label_smoothing=0.0,
        log_every=20,
        eval_every=200,
        eval_sentences=50,
        checkpoint_every=100,
        keep_last=1,
    ),
    decode=DecodeConfig(length_normalization="none"),
)

FIRST = {
    "model.encoder_layers": 2,
    "model.decoder_layers": 2,
    "train.steps": 4_000,
    "train.peak_learning_rate": 1.2e-3,
    "train.warmup_steps": 250,
    "train.eval_every": 2_000,
}
