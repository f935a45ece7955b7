"""A small BERT of English text, from nothing: masked pieces and next sentences; for some hours on two cores.

    python train.py --config configs/bert_mini.py --workdir runs/bert
    python evaluate.py --workdir runs/bert
    echo "The [MASK] of the European Parliament voted." | python -m transformer fill runs/bert

Put the English files of wmt_mini in $TRANSFORMER_DATA/wmt_mini, newstest2013.en-de.en in $TRANSFORMER_DATA/newstest,
and input.txt (or input.txt.gz) of tiny_shakespeare in $TRANSFORMER_DATA/tiny_shakespeare. Europarl, TED talks and news
have no blank lines between documents, so runs of 20 neighbouring lines serve as documents. The lines of Tatoeba and
chats do not belong together, and speeches in plays are short: they are read for masked pieces alone.

A masked language model first learns how frequent pieces are, and stays there for some million pieces until it finds out
that neighbours matter. Short rows, a high learning rate and positions that start as sinusoids shorten this.
"""

import dataclasses
import os

from transformer.config import BERT, MaskedConfig, PretrainConfig

root = os.environ.get("TRANSFORMER_DATA", "data")
stem = os.path.join(root, "tiny_shakespeare", "input.txt")
shakespeare = f"{stem}.gz" if os.path.exists(f"{stem}.gz") else stem


def wmt_mini(*names: str) -> tuple[str, ...]:
    return tuple(os.path.join(root, "wmt_mini", f"{name}.en.gz") for name in names)


config = MaskedConfig(
    model=dataclasses.replace(
        BERT, encoder_layers=4, d_model=256, d_ff=1_024, heads=4, max_positions=64, initializer="scaled"
    ),
    data=PretrainConfig(
        text=wmt_mini("europarl", "ted", "news"),
        unpaired_text=(*wmt_mini("tatoeba", "chat"), shakespeare),
        dev_text=(os.path.join(root, "newstest", "newstest2013.en-de.en"),),
        document_lines=20,
        vocab_size=8_000,
        context=64,
    ),
    train=dataclasses.replace(
        MaskedConfig.train,
        steps=16_000,
        batch_tokens=64 * 64,
        peak_learning_rate=2e-3,
        warmup_steps=500,
        decay_steps=16_000,
        adam_b2=0.98,
        log_every=100,
        eval_every=1_000,
        checkpoint_every=500,
    ),
)
