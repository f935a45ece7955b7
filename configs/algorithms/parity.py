"""Whether the number of ones is even, with a scratchpad of index hints; --data.hints False: without.

    python train.py --config configs/algorithms/parity.py --workdir runs/parity
    python evaluate.py --workdir runs/parity --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. This has not been run to its end.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=2, heads=2, d_model=128, d_ff=512, max_positions=256, position_offset=128
    ),
    data=InstancesConfig(algorithm="parity", hints=True, longest=30, tested=(45,)),
)
