"""A language model of the bytes of Shakespeare's plays, without patches, beside configs/blt_shakespeare.py.

    python train.py --config configs/bytes_shakespeare.py --workdir runs/bytes
    python evaluate.py --workdir runs/bytes

Text, rows and training FLOPs are those of configs/blt_shakespeare.py.
"""

import dataclasses
import os

from transformer.config import ByteLatentConfig, LanguageModelConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = LanguageModelConfig(
    model=dataclasses.replace(ByteLatentConfig.model.latent, decoder_layers=6, d_model=256, d_ff=1_024, heads=4),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="bytes", context=256),
    train=dataclasses.replace(ByteLatentConfig.train, eval_every=250, checkpoint_every=250),
)
