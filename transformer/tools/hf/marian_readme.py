"""The README.md of an exported Marian: how to use the folder, and in what it differs from our model."""

from __future__ import annotations

from transformer.config import Config
from transformer.data.marian import MarianTokenizer
from transformer.data.tokenizer import Tokenizer
from transformer.tools.hf.marian import EPS

_PAGE = """A translation model for Hugging Face's transformers:

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # pip install torch transformers sentencepiece

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")
batch = tokenizer(["A sentence."], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))
```

`FOLDER` is this folder. The tokenizer recommends the package sacremoses; it does not use it here.

## What differs from the model that was exported

{differences}
## CTranslate2

Make the folder for CTranslate2 from the workdir: `python -m transformer export WORKDIR FOLDER --to ctranslate2`.
{converter}
"""


def readme(config: Config, tokenizer: Tokenizer, start: str | None) -> str:
    """How to use the folder, in Markdown. `start`: the piece that the decoder begins with, unless it is padding."""
    converter = (
        "The converter that comes with CTranslate2 reads Opus-MT's form alone: it drops the last row of the embedding "
        "table, which is padding there, and starts the decoder with a vector of zeros."
    )
    if start is not None:
        converter += f" This model's decoder starts with {start}, so that converter gives wrong translations."
    d, found = config.decode, []
    if config.model.norm_eps != EPS:
        found.append(
            f"Norms: Marian adds {EPS:g} to the variance, this model {config.model.norm_eps:g}. Logits differ by about "
            f"1e-5. For closer ones, set `module.eps = {config.model.norm_eps:g}` on each `torch.nn.LayerNorm`."
        )
    if d.length_normalization == "paper":
        found.append(
            f"Length penalty: `generate` divides the log-probability by length^{d.length_penalty:g}, this model by "
            f"((5 + length) / 6)^{d.length_penalty:g}. The score of a translation, and sometimes the choice, differ."
        )
    found.append(
        "Search: `generate` drops a hypothesis that ends outside the best `num_beams` continuations, and may stop "
        "before a better one ends. The search of the exporting program does neither."
    )
    if d.max_length is None:
        found.append(
            f"Length: `generate` has one limit for all sentences; here a translation has at most {d.max_extra_length} "
            "pieces more than its source."
        )
    if tokenizer.cleans:
        found.append(
            "Text: `source.spm` and `target.spm` clean text by a table without context, which keeps every joiner "
            "and every tag (U+200C, U+200D, U+180E, U+E0020 to U+E007F)."
        )
    if not isinstance(tokenizer, MarianTokenizer):
        found.append("Languages: `MarianTokenizer` takes a text that begins like `>>de<<` for the code of a language.")
    return _PAGE.format(differences="".join(f"- {line}\n" for line in found), converter=converter)
