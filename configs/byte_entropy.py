"""The small byte model whose entropies cut Shakespeare's plays into patches, for configs/blt_shakespeare.py.

    python train.py --config configs/byte_entropy.py --workdir runs/byte_entropy

The text is that of configs/shakespeare_char.py.
"""

import dataclasses
import os

from transformer.config import ByteLatentConfig, LanguageModelConfig, TextConfig

stem = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "tiny_shakespeare", "input.txt")
text = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem

config = LanguageModelConfig(
    model=ByteLatentConfig.model.entropy,
    data=TextConfig(text=(text,), dev_share=0.1, pieces="bytes", context=256),
    train=dataclasses.replace(
        ByteLatentConfig.train,
        steps=1_000,
        decay_steps=1_000,
        peak_learning_rate=3e-3,
        eval_every=250,
        checkpoint_every=250,
    ),
)
