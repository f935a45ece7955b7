"""GPT-3 with 175 billion parameters (Brown et al. 2020), to be described and planned, not trained.

    python -m transformer describe --attention --config configs/gpt3.py

All layers attend to the whole context; every other layer of the original attends to a part of it. On a mesh, cut it by
mesh.data and mesh.fsdp: the 50,257 pieces, a prime number, can't be cut by mesh.tensor.
"""

import dataclasses

from transformer.config import GPT2, LanguageModelConfig, TextConfig

config = LanguageModelConfig(
    model=dataclasses.replace(
        GPT2,
        decoder_layers=96,
        d_model=12_288,
        d_ff=49_152,
        heads=96,
        vocab_size=50_257,
        max_positions=2_048,
        dtype="bfloat16",
    ),
    data=TextConfig(documents="blank_lines", vocab_size=50_257, context=2_048),
    # Table 2.1 and appendix B: 300 billion pieces in batches of 3.2 million.
    train=dataclasses.replace(
        LanguageModelConfig.train,
        steps=95_000,
        batch_tokens=1_536 * 2_048,
        peak_learning_rate=6e-5,
        warmup_steps=120,
        decay_steps=83_000,
    ),
)
