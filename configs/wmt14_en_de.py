"""The paper's base model on WMT14 English to German, downloaded through TFDS; newstest2013 dev, newstest2014 test.

    python train.py --config configs/wmt14_en_de.py --workdir runs/wmt14_en_de
    python -m transformer average runs/wmt14_en_de --last 5
    python evaluate.py --workdir runs/wmt14_en_de

Not run to the end here. Expect 25.5 to 26.9 sacreBLEU (13a) on the full newstest2014: see docs/wmt14.md. The paper's
27.3 is tokenised and compound-split BLEU, which evaluate.py prints as its second number.
"""

from transformer.config import BASE, Config, DataConfig, DecodeConfig, TrainConfig

config = Config(
    model=BASE,
    data=DataConfig(corpus="wmt14", languages=("en", "de"), vocab_size=37_000, packing=True),
    train=TrainConfig(steps=100_000, batch_tokens=25_000, warmup_steps=4_000, keep_every=10_000),
    decode=DecodeConfig(beam_size=4, length_penalty=0.6, length_normalization="paper", max_extra_length=50),
)
