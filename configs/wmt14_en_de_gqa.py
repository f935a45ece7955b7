"""Up-training of the base model with grouped-query attention, two key/value heads (Ainslie et al. 2023, 2305.13245).

    python train.py --config configs/wmt14_en_de.py --workdir runs/wmt14_en_de
    python -m transformer convert runs/wmt14_en_de runs/wmt14_en_de_gqa_start --kv-heads 2
    python train.py --config configs/wmt14_en_de_gqa.py --workdir runs/wmt14_en_de_gqa

5,000 updates, a twentieth of the original training: enough, according to the paper. Not run here.
"""

import dataclasses

from transformer.config import BASE, Config, DataConfig, DecodeConfig, TrainConfig

config = Config(
    model=dataclasses.replace(BASE, kv_heads=2),
    data=DataConfig(corpus="wmt14", languages=("en", "de"), vocab_size=37_000, packing=True),
    train=TrainConfig(
        steps=5_000,
        batch_tokens=25_000,
        # The learning rate at the end of the original training, 512^-0.5 * 100,000^-0.5, after a short warmup.
        peak_learning_rate=1.4e-4,
        warmup_steps=500,
        init_from="runs/wmt14_en_de_gqa_start",
    ),
    decode=DecodeConfig(beam_size=4, length_penalty=0.6, length_normalization="paper", max_extra_length=50),
)
