"""The AND of 20 bits, five of which are always 1 in training.

    python train.py --config configs/algorithms/and.py --workdir runs/and
    python evaluate.py --workdir runs/and --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout and learned
positions. 400 updates, half a minute, are enough.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(AlgorithmConfig.model, decoder_layers=1, heads=1, d_model=64, max_positions=24),
    data=InstancesConfig(algorithm="and", tested=()),
    train=dataclasses.replace(AlgorithmConfig.train, steps=3_000, decay_steps=3_000),
)
