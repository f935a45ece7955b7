"""Your own parallel text: one sentence a line, the same number of lines in both files (or one .tsv or .jsonl).

    python train.py --config configs/text_files.py --data.source train.en --data.target train.de \
        --data.dev_source dev.en --data.dev_target dev.de --workdir runs/mine

With --data.languages en de, evaluate.py also prints the paper's compound-split BLEU.

The size of the model suits 100,000 to a few million pairs. For fewer pairs see configs/multi30k_en_de.py.
"""

from transformer.config import Config, DataConfig, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(encoder_layers=4, decoder_layers=4, d_model=256, d_ff=1024, heads=4, dropout=0.2),
    data=DataConfig(vocab_size=8_000),
    train=TrainConfig(steps=20_000, batch_tokens=8_192, warmup_steps=4_000, patience=10),
)
