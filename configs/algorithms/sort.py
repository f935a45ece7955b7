"""Different symbols in ascending order.

    python train.py --config configs/algorithms/sort.py --workdir runs/sort
    python evaluate.py --workdir runs/sort --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. docs/length_generalisation.md has what came of it.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=1, heads=2, d_model=256, d_ff=1024, max_positions=404, position_offset=300
    ),
    data=InstancesConfig(algorithm="sort"),
    train=dataclasses.replace(AlgorithmConfig.train, peak_learning_rate=3e-4, steps=5_000, decay_steps=5_000),
)
