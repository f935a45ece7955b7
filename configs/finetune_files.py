"""Fine-tuning a BERT on labelled texts of your own: classes, numbers, or a tag for each word.

    python train.py --config configs/finetune_files.py --data.train train.tsv --data.dev dev.tsv \
        --train.init_from runs/bert --workdir runs/mine
    python evaluate.py --workdir runs/mine
    echo "A text." | python -m transformer predict runs/mine

The files have a header with the columns text and label; data.text, data.second and data.label name other ones. Without
--data.dev, a tenth of the texts, drawn at random, is the development set. The start is a run of bert_mini.py or
bert_files.py, or a BERT of Hugging Face that `import --from hf-bert` has read.
"""

from transformer.config import FinetuneConfig

config = FinetuneConfig()
