"""A prompt of different symbols again; with --data.repeated True of repeated ones, which is not expected to work.

    python train.py --config configs/algorithms/copy.py --workdir runs/copy
    python evaluate.py --workdir runs/copy --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. docs/length_generalisation.md has what came of it.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=2, heads=1, d_model=64, max_positions=404, position_offset=300
    ),
    data=InstancesConfig(algorithm="copy"),
)
