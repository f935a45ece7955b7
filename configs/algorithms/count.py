"""From a to b: "3 6" gives "3 4 5 6".

    python train.py --config configs/algorithms/count.py --workdir runs/count
    python evaluate.py --workdir runs/count --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. With one layer it fails beyond the lengths of training, with two it does well
(docs/length_generalisation.md).
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=2, heads=1, d_model=64, max_positions=208, position_offset=150
    ),
    data=InstancesConfig(algorithm="count"),
)
