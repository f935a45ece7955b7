"""The paper's base model on WMT14 English to French: a vocabulary of 32,000 pieces.

    python train.py --config configs/wmt14_en_fr.py --workdir runs/wmt14_en_fr
    python -m transformer average runs/wmt14_en_fr --last 5
    python evaluate.py --workdir runs/wmt14_en_fr

Not run here. The paper's 38.1 is tokenised BLEU.
"""

from transformer.config import BASE, Config, DataConfig, DecodeConfig, TrainConfig

config = Config(
    model=BASE,
    data=DataConfig(corpus="wmt14", languages=("en", "fr"), vocab_size=32_000, packing=True),
    train=TrainConfig(steps=100_000, batch_tokens=25_000, warmup_steps=4_000, keep_every=10_000),
    decode=DecodeConfig(beam_size=4, length_penalty=0.6, length_normalization="paper", max_extra_length=50),
)
