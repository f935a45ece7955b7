"""The Byte Latent Transformer of configs/blt_shakespeare.py with patches of equal length.

    python train.py --config configs/blt_static_shakespeare.py --workdir runs/blt_static
    python evaluate.py --workdir runs/blt_static

Training FLOPs are the same; a row needs no room for more patches than it has on average, so there are more updates.
"""

import dataclasses
import os

from transformer.config import ByteLatentConfig, NgramConfig, PatchConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = ByteLatentConfig(
    model=dataclasses.replace(ByteLatentConfig.model, patches=PatchConfig(by="static"), ngrams=NgramConfig(rows=0)),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="bytes", context=256),
    train=dataclasses.replace(
        ByteLatentConfig.train, steps=2_300, decay_steps=2_300, eval_every=250, checkpoint_every=250
    ),
)
