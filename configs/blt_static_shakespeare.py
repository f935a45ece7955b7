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
    model=dataclasses.replace(
        ByteLatentConfig.model,
        **{"d_model": 128, "d_ff": 512, "heads": 2, "ngrams": NgramConfig(rows=0)},
        latent=dataclasses.replace(ByteLatentConfig.model.latent, d_model=256, d_ff=1_024, heads=4),
        patches=PatchConfig(by="static"),
    ),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="bytes", context=256),
    train=dataclasses.replace(
        ByteLatentConfig.train, steps=4_837, decay_steps=4_837, eval_every=500, checkpoint_every=500
    ),
)
