"""A Byte Latent Transformer on Shakespeare's plays: patches begin where the next byte is hard to predict.

    python train.py --config configs/byte_entropy.py --workdir runs/byte_entropy
    python train.py --config configs/blt_shakespeare.py --entropy.init_from runs/byte_entropy --workdir runs/blt
    python evaluate.py --workdir runs/blt

The text is that of configs/shakespeare_char.py. docs/bytes.md compares it with static patches and with bytes alone, at
equal training FLOPs. Without embeddings of n-grams, since on this little text they learn it by heart.
"""

import dataclasses
import os

from transformer.config import ByteLatentConfig, NgramConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = ByteLatentConfig(
    model=dataclasses.replace(
        ByteLatentConfig.model,
        **{"d_model": 128, "d_ff": 512, "heads": 2, "ngrams": NgramConfig(rows=0)},
        latent=dataclasses.replace(ByteLatentConfig.model.latent, d_model=256, d_ff=1_024, heads=4),
    ),
    data=TextConfig(text=(text,), dev_share=0.1, pieces="bytes", context=256),
    train=dataclasses.replace(
        ByteLatentConfig.train, steps=4_065, decay_steps=4_065, eval_every=500, checkpoint_every=500
    ),
)
