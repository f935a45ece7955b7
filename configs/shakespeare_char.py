"""A character model of Shakespeare's plays: the sizes of nanoGPT's setting for a CPU, a minute and a half on two cores.

    python train.py --config configs/shakespeare_char.py --workdir runs/shakespeare
    python evaluate.py --workdir runs/shakespeare

Put input.txt (or input.txt.gz) of karpathy/char-rnn's tiny_shakespeare in $TRANSFORMER_DATA/tiny_shakespeare. The first
90 % of its 1,115,394 characters are training text, as in nanoGPT.
"""

import dataclasses
import os

from transformer.config import GPT2, LanguageModelConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = LanguageModelConfig(
    model=dataclasses.replace(
        GPT2,
        decoder_layers=4,
        d_model=128,
        d_ff=512,
        heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        max_positions=64,
    ),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="characters", context=64),
    train=dataclasses.replace(
        LanguageModelConfig.train,
        steps=2_000,
        batch_tokens=12 * 64,
        peak_learning_rate=3e-3,
        warmup_steps=100,
        decay_steps=2_000,
        adam_b2=0.99,
        log_every=100,
        eval_every=500,
        checkpoint_every=500,
    ),
)
