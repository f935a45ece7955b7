"""The sum of two numbers, last digit first, with index hints; without: --data.reverse False, --data.hints False.

    python train.py --config configs/algorithms/addition.py --workdir runs/addition
    python evaluate.py --workdir runs/addition --json

The model is as in lacoco-lab/length_generalization (2025): GPT-2's blocks without dropout, and learned positions that
begin at a random number in training. This has not been run to its end.
"""

import dataclasses

from transformer.config import AlgorithmConfig, InstancesConfig

config = AlgorithmConfig(
    model=dataclasses.replace(
        AlgorithmConfig.model, decoder_layers=3, heads=2, d_model=128, d_ff=512, max_positions=160, position_offset=80
    ),
    data=InstancesConfig(algorithm="addition", hints=True, reverse=True, longest=12, tested=(18,)),
)
