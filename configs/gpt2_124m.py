"""The smallest GPT-2 (Radford et al. 2019), to the letter: 124,439,808 parameters, context 1,024.

    python train.py --config configs/gpt2_124m.py --data.text a.txt b.txt --data.tokenizer gpt2/tokenizer.json \
        --workdir runs/gpt2

With GPT-2's tokenizer.json (which needs the package tokenizers) it has GPT-2's own pieces; without it, a SentencePiece
vocabulary of the same size is trained. A blank line ends a document. The batch of about half a million pieces is
nanoGPT's, cut into micro-batches of 12 rows. Not run here.
"""

import dataclasses

from transformer.config import GPT2, LanguageModelConfig, TextConfig

config = LanguageModelConfig(
    model=dataclasses.replace(GPT2, vocab_size=50_257),
    data=TextConfig(documents="blank_lines", vocab_size=50_257, context=1_024),
    train=dataclasses.replace(
        LanguageModelConfig.train,
        steps=600_000,
        batch_tokens=480 * 1_024,
        accumulate=40,
        peak_learning_rate=6e-4,
        warmup_steps=2_000,
        decay_steps=600_000,
    ),
)
