"""A BERT of your own text, with a new WordPiece vocabulary.

    python train.py --config configs/bert_files.py --data.text a.txt b.txt --workdir runs/mine
    python evaluate.py --workdir runs/mine

Files hold one sentence a line, and blank lines between documents. Without blank lines, --data.document_lines 20 makes
documents of 20 neighbouring lines; --data.next_sentence False --model.head masked trains on masked pieces alone. The
last twentieth of the documents is the development text, unless --data.dev_text names another one. The size of the model
suits 10 to 100 MB of text.
"""

import dataclasses

from transformer.config import BERT, MaskedConfig, PretrainConfig

config = MaskedConfig(
    model=dataclasses.replace(BERT, encoder_layers=6, d_model=384, d_ff=1_536, heads=6, max_positions=128),
    data=PretrainConfig(vocab_size=16_000, context=128),
    train=dataclasses.replace(
        MaskedConfig.train,
        steps=50_000,
        batch_tokens=128 * 128,
        peak_learning_rate=5e-4,
        warmup_steps=2_500,
        decay_steps=50_000,
    ),
)
