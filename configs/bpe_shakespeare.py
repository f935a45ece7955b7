"""A language model of the BPE pieces of Shakespeare's plays, beside configs/blt_shakespeare.py.

    python train.py --config configs/bpe_shakespeare.py --workdir runs/bpe
    python evaluate.py --workdir runs/bpe

A row of 96 pieces has about as much text as a row of 256 bytes there, and the training FLOPs are the same.
"""

import dataclasses
import os

from transformer.config import ByteLatentConfig, LanguageModelConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = LanguageModelConfig(
    model=dataclasses.replace(ByteLatentConfig.model.latent, decoder_layers=7, dropout=0.3),
    data=TextConfig(text=(text,), dev_share=0.1, vocab_size=1_024, context=96),
    train=dataclasses.replace(
        ByteLatentConfig.train,
        batch_tokens=16 * 96,
        steps=2_235,
        decay_steps=2_235,
        eval_every=250,
        checkpoint_every=250,
    ),
)
