"""Writes docs/formats.md: `python docs/formats.py`. Its tables ask the code what each format can express."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer.tools.ctranslate2 import NEVER
from transformer.tools.formats import EXPORTS, IMPORTS, QUANTIZATIONS, VARIANTS, expressible

PAGE = Path(__file__).with_suffix(".md")
HEAD = """\
# Formats: in and out

<!-- Written by docs/formats.py. Change that file, then run: python docs/formats.py -->

## Out

    python -m transformer export runs/mine exported --to safetensors

writes a new folder, whole or not at all. `--checkpoint` chooses the checkpoint (default: the average if there is
one, else the best). Every folder has a `README.md` with a program that uses it, and a `MODEL_CARD.md`: what the model
is, data and digests, training, scores with sacreBLEU's signatures, the config, and what is not known.

"""
FORMATS = """
### CTranslate2

    python -m transformer export runs/mine exported_int8 --to ctranslate2 --quantization int8

- `--quantization` is one of {quantizations}; without it, float32. With int8 the matrices take a quarter of the bytes.
- Pieces have SentencePiece's names. `source.spm` and `target.spm` clean text as our tokenizer does, and `</s>` is
  appended to a source by itself. The folder of a language model has a `tokenizer.json`.
- The program in the README.md of the folder searches as the config says: beams or sampling, limits of length,
  `no_repeat_ngram`, `repetition_penalty` and `banned`. It takes other options of `translate_batch`, too.
- CTranslate2 divides scores by length^`length_penalty`. This is ours with `decode.length_normalization` `fairseq`,
  or, with 0, `none`. The paper's ((5 + length) / 6)^alpha has no counterpart.
- `<pad>` and `<s>` have a bias of {never:,.0f}, so that they are never chosen. This also leaves them out of the
  softmax, where ours counts them. So the log-probability of each piece is higher there by their probability: after
  label smoothing of 0.1 by about 0.2 divided by the number of pieces.
- Its own least length is one piece, which leaves `</s>` out of the first softmax; the program gives
  `min_decoding_length=0`.
- The attention that `translate_batch` returns is our alignment: that of the last layer but one, averaged over its
  heads.
- Its table of positions ends at `decode.max_source_length` + `decode.max_extra_length` + 1, or at `data.max_length`
  if that is more.

### jax

    python -m transformer export runs/mine exported_jax --to jax

- `loader.py` runs the programs of the folder with jax, numpy and flatbuffers, without this package and without Flax,
  on a CPU, an NVIDIA GPU or a TPU: `forward` for arrays of any sizes (rows end where learned positions do), `search`
  for lists of ids.
- Translations are the search that the config describes, for sources of up to 32 or 128 pieces, in batches of 1 or 16.
  A language model samples or searches as its config says; prompts have up to 32 or 128 pieces, and the new pieces
  take at most half the context. Other tasks have `forward` alone.
- The parameters are `model.safetensors`, in float32, by our names.
- A run with `model.attention_kernel` `cudnn` is exported with the plain kernel, which runs everywhere.

### safetensors

    python -m transformer import exported runs/again --from safetensors

The folder holds the parameters of any model under our names, with its config, its scores and its vocabulary.
`import` makes a workdir of it with the same bits; it refuses a file or parameters that are not as they were written.

### Hugging Face

[Translation](variants.md#export), [language models](gpt2_and_accounting.md#export-a-language-model) and
[encoders](bert.md) have pages of their own.

## What each format can express

`safetensors` holds every model, and `jax` all but those of [bytes in patches](bytes.md). For the others: yes; or no,
and then `export` names the field. An empty cell is for a model that does not exist. Sizes, dropout, initial values and
kernels are free everywhere.

"""
IN = """
## In

    python -m transformer import gpt2 runs/gpt2 --from hf-gpt2

reads a folder into a new workdir: for `transformer.load`, evaluation, and as `--train.init_from` of a run. One error
lists all arrays that are missing, unknown or of a wrong shape, another one all fields that our model can't express.
Only safetensors files are read.

"""


def table(rows: list[list[str]]) -> Iterator[str]:
    """Rows as a table in Markdown; the first one is the head."""
    for number, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if number == 0:
            yield "|" + "---|" * len(row)


def named(change: Mapping[str, Any]) -> str:
    """A change of a model, as its options are written."""
    parts = []
    for name, value in change.items():
        if hasattr(value, "window"):
            parts += [f"{name}.{field} = {x}" for field, x in vars(value).items() if x is not None]
        elif name != "labels":
            parts.append(f"{name} = {value}")
    return ", ".join(f"`{part}`" for part in parts)


def out() -> list[list[str]]:
    """The formats that `export` writes."""
    needs = {name: f"`pip install 'transformer[{one.extra}]'`" for name, one in EXPORTS.items()}
    return [["`--to`", "for", "needs"], *([f"`{name}`", one.what, needs[name]] for name, one in EXPORTS.items())]


def models() -> list[list[str]]:
    """What each format can express: a row for each change of a model."""
    kinds = [(name, kind) for name, one in EXPORTS.items() for kind in one.models]
    rows = [["model", *(f"`{name}`, {kind}" for name, kind in kinds)]]
    for change in (change for changes in VARIANTS.values() for change in changes):
        cells = [expressible(EXPORTS[name], kind, change) for name, kind in kinds]
        if any(cell is not None for cell in cells):
            rows.append([named(change), *({True: "yes", False: "no", None: ""}[cell] for cell in cells)])
    return rows


def into() -> list[list[str]]:
    """The formats that `import` reads."""
    rows = [["`--from`", "what wrote it", "activations", "fields that must have this value"]]
    for name, one in IMPORTS.items():
        fixed = ", ".join(f"`{field}` {json.dumps(value)}" for field, value in one.fixed.items())
        rows.append([f"`{name}`", one.what, ", ".join(f"`{x}`" for x in one.activations), fixed])
    return rows


def page() -> str:
    """The content of docs/formats.md."""
    formats = FORMATS.format(quantizations=", ".join(f"`{one}`" for one in QUANTIZATIONS), never=NEVER)
    parts = (HEAD, *table(out()), formats, *table(models()), IN, *table(into()))
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
