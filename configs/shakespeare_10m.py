"""A character model of Shakespeare's plays of the sizes of nanoGPT's setting for a GPU: 10.77 million parameters.

    python train.py --config configs/shakespeare_10m.py --workdir runs/shakespeare_10m
    python evaluate.py --workdir runs/shakespeare_10m

The text is that of configs/shakespeare_char.py. nanoGPT counts 10.65 million, since it has no biases and leaves
positions out. It reads 82 million characters in batches of 16,384 and takes the best of its checkpoints, because the
model overfits. Here batches are a quarter as large, the learning rate is twice as high and falls to almost nothing, and
20 million characters are read (20 epochs): 1.484 nats a character. A second run goes on from there with a new schedule,
a warm restart (Loshchilov and Hutter 2017), and with more dropout, for another 6 million: 1.475.

    python train.py --config configs/shakespeare_10m.py --workdir runs/shakespeare_10m_more \
        --train.init_from runs/shakespeare_10m --train.seed 1 --train.peak_learning_rate 7e-4 --train.warmup_steps 50 \
        --train.steps 1500 --train.decay_steps 1500 --model.dropout 0.25 --model.attention_dropout 0.25
"""

import dataclasses
import os

from transformer.config import GPT2, LanguageModelConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = LanguageModelConfig(
    model=dataclasses.replace(
        GPT2,
        decoder_layers=6,
        d_model=384,
        d_ff=1_536,
        heads=6,
        dropout=0.2,
        attention_dropout=0.2,
        max_positions=256,
        dtype="bfloat16",
    ),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="characters", context=256),
    train=dataclasses.replace(
        LanguageModelConfig.train,
        steps=5_000,
        batch_tokens=16 * 256,
        peak_learning_rate=2e-3,
        warmup_steps=200,
        decay_steps=5_000,
        final_learning_rate=0.02,
        adam_b2=0.99,
        log_every=50,
        eval_every=250,
        checkpoint_every=250,
    ),
)
