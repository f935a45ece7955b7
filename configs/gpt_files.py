"""A language model of your own text, with a new SentencePiece vocabulary.

    python train.py --config configs/gpt_files.py --data.text a.txt b.txt --data.dev_text dev.txt --workdir runs/mine
    python evaluate.py --workdir runs/mine

Without --data.dev_text, the last tenth of the text is the development text. With --data.documents blank_lines (or
files), no document sees another one. The size of the model suits 10 to 100 MB of text.
"""

import dataclasses

from transformer.config import GPT2, LanguageModelConfig, TextConfig

config = LanguageModelConfig(
    model=dataclasses.replace(GPT2, decoder_layers=6, d_model=384, d_ff=1_536, heads=6, max_positions=256),
    data=TextConfig(vocab_size=8_000, context=256),
    train=dataclasses.replace(
        LanguageModelConfig.train,
        steps=20_000,
        batch_tokens=32 * 256,
        peak_learning_rate=1e-3,
        warmup_steps=500,
        decay_steps=20_000,
        patience=10,
    ),
)
