"""Constituency trees of biomedical articles (CRAFT), from scratch.

    python train.py --config configs/parsing_craft.py --workdir runs/parser
    python evaluate.py --workdir runs/parser
    python -m transformer parse runs/parser < tokenised.txt > trees.mrg

Put craft.train.mrg.gz and craft.dev.mrg.gz in $TRANSFORMER_DATA/treebank. With --model.dtype bfloat16 it takes
less than two hours on one core; docs/parsing.md has what it reached. For more, raise train.steps and train.decay_steps.
"""

import os
from dataclasses import replace

from transformer.config import ParsingConfig, TrainConfig, TreebankConfig

folder = os.path.join(os.environ.get("TRANSFORMER_DATA", "data"), "treebank")

config = ParsingConfig(
    model=replace(ParsingConfig.model, dropout=0.1, attention_dropout=0.1),
    data=TreebankConfig(
        train=(os.path.join(folder, "craft.train.mrg.gz"),),
        dev=(os.path.join(folder, "craft.dev.mrg.gz"),),
    ),
    train=TrainConfig(
        steps=9_000,
        batch_tokens=2_048,
        peak_learning_rate=1e-3,
        warmup_steps=1_000,
        schedule="linear",
        decay_steps=9_000,
        eval_every=1_500,
        eval_sentences=500,
        checkpoint_every=1_000,
    ),
)
