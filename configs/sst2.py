"""Sentences of film reviews, positive or negative (SST-2 of GLUE), from a BERT that is trained already.

    python train.py --config configs/sst2.py --workdir runs/sst2 --train.init_from runs/minilm --train.seeds 3
    python evaluate.py --workdir runs/sst2
    echo "a gripping film ." | python -m transformer predict runs/sst2

Put train.tsv.gz and dev.tsv.gz in $TRANSFORMER_DATA/sst2: a label, 0 or 1, a tab and a sentence, without a header.

A single epoch reads each batch twice, with other dropout, and draws both predictions together (R-Drop, Liang et al.
2021). That was as good as three epochs without it, in less time.
"""

import dataclasses
import os

from transformer.config import FinetuneConfig, LabelledConfig, TuneConfig

folder = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "sst2")

config = FinetuneConfig(
    data=LabelledConfig(
        train=(os.path.join(folder, "train.tsv.gz"),),
        dev=(os.path.join(folder, "dev.tsv.gz"),),
        text="2",
        label="1",
        context=64,
    ),
    train=dataclasses.replace(
        FinetuneConfig.train, peak_learning_rate=1e-4, label_smoothing=0.1, ema_decay=0.999, r_drop=1.0
    ),
    tune=TuneConfig(epochs=1.0, evaluations=3),
)
