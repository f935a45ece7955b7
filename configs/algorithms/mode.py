"""The most frequent of 26 symbols.

    python train.py --config configs/algorithms/mode.py --workdir runs/mode
    python evaluate.py --workdir runs/mode --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. docs/length_generalisation.md has what came of it.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=1, heads=2, d_model=256, d_ff=1024, max_positions=208, position_offset=150
    ),
    data=InstancesConfig(algorithm="mode"),
)
