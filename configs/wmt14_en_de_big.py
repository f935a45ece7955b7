"""The paper's big model on WMT14 English to German (300,000 updates, dropout 0.3, 20 checkpoints averaged).

    python train.py --config configs/wmt14_en_de_big.py --workdir runs/wmt14_en_de_big
    python -m transformer average runs/wmt14_en_de_big --last 20
    python evaluate.py --workdir runs/wmt14_en_de_big

Not run here. The paper's 28.4 is tokenised and compound-split BLEU; see configs/wmt14_en_de.py.
"""

from transformer.config import BIG, Config, DataConfig, DecodeConfig, TrainConfig

config = Config(
    model=BIG,
    data=DataConfig(corpus="wmt14", languages=("en", "de"), vocab_size=37_000, packing=True),
    train=TrainConfig(steps=300_000, batch_tokens=25_000, warmup_steps=4_000, keep_last=20),
    decode=DecodeConfig(beam_size=4, length_penalty=0.6, length_normalization="paper", max_extra_length=50),
)
