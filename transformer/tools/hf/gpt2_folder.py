"""Folders of Hugging Face's GPT-2: import one as a workdir, export a workdir as one."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import LanguageModelConfig, ModelConfig, UserError, check, require_task
from transformer.data.vocabularies import Vocabulary
from transformer.files import local_path, new_folder, path_of, require_new, writing
from transformer.packages import require
from transformer.tasks.vocabulary import VOCABULARIES
from transformer.tasks.vocabulary import files_of as vocabulary_files
from transformer.tasks.vocabulary import vocabulary_in as vocabulary_of_checkpoint
from transformer.tools.hf import gpt2
from transformer.tools.hf.folder import config_in, read_model, require_arrays, write, write_arrays
from transformer.tools.hf.vocabulary import (
    begins_texts,
    files_of,
    longest_text,
    of_size,
    refuse_larger,
    special_ids,
    vocabulary_in,
)
from transformer.tools.model_card import About, about, files_about
from transformer.tools.new_workdir import new_workdir

_CLASS = "AutoModelForCausalLM"  # of transformers, which reads such a folder
_KEPT = "hf_gpt2"
"""Field of progress.json: what an imported folder says of itself besides the model, for a later export."""

_USE = """
Needs `pip install torch transformers`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.batch_decode(model.generate(inputs.input_ids, max_new_tokens=20)))
```
"""

log = logging.getLogger("transformer")


# ---- In --------------------------------------------------------------------------------------------------------------


def import_folder(folder: str, out: str) -> None:
    """Write a workdir with the model and the vocabulary of a folder that `GPT2LMHeadModel.save_pretrained` wrote.

    Needs the package safetensors, and tokenizers if the folder has a tokenizer; but neither torch nor transformers.
    Raises `UserError` if `out` is not a new or empty folder, if the folder lacks a file or holds a damaged one, and for
    all that `gpt2.model_config`, `gpt2.from_gpt2` and `vocabulary_in` refuse.
    """
    require("import --from hf-gpt2", "safetensors")
    require_new(path_of(out))
    file, values = config_in(folder)
    model = gpt2.model_config(values, file)
    require_arrays(file.parent, _CLASS)
    if left_out := gpt2.without_counterpart(values):
        log.warning("%s: these fields have no counterpart here and are left out: %s", file, ", ".join(left_out))
    vocabulary = vocabulary_in(file.parent)
    if vocabulary is not None:
        refuse_larger(vocabulary, model.vocab_size, file.parent)
    config = _run_config(model, file, vocabulary)
    state = read_model(file.parent, _CLASS)
    params = gpt2.from_gpt2(state, model)
    if vocabulary is not None:  # only now, when vocab_size is known to be right
        vocabulary = of_size(vocabulary, model.vocab_size, file.parent)
    kept = {name: values[name] for name in gpt2.SPECIAL_IDS if type(values.get(name)) is int}
    kept["prefix"] = gpt2.prefix_of(state)
    progress = {"step": 0, "vocab_size": model.vocab_size, "averaged_steps": [0], _KEPT: kept}
    files = {} if vocabulary is None else vocabulary_files(vocabulary)
    new_workdir(out, params, config, progress=progress, files=files)


def _run_config(model: ModelConfig, where: Path, vocabulary: Vocabulary | None) -> LanguageModelConfig:
    """The config of a run of this model: rows as long as its positions, if its tokenizer does not say less; documents,
    if its tokenizer puts their begin before each text; and the defaults."""
    default, context, documents = LanguageModelConfig(), model.max_positions, "none"
    if vocabulary is not None:
        context = min(context, longest_text(where.parent) or context)
        documents = "blank_lines" if begins_texts(where.parent, vocabulary) else documents
    data = dataclasses.replace(default.data, context=context, documents=documents)
    tokens = max(default.train.batch_tokens, model.max_positions)
    config = LanguageModelConfig(model, data, dataclasses.replace(default.train, batch_tokens=tokens))
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


# ---- Out -------------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    config: LanguageModelConfig
    state: dict[str, np.ndarray]
    prefix: str
    vocabulary: Vocabulary | None
    ids: dict[str, Any]
    """The special ids, by their names in config.json."""
    about: About


def export(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint as a folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    `checkpoint` as in `transformer.load`. Needs the package safetensors, but neither torch nor transformers. Raises
    `UserError` if safetensors is missing, if `out` is not a new or empty folder, and as `gpt2.to_gpt2` does.
    """
    require("export --to hf-gpt2", "safetensors")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(workdir).read(checkpoint, _open)
    model, data, vocabulary = opened.config.model, opened.config.data, opened.vocabulary
    with writing(folder), new_folder(folder) as building:
        files = {}
        if vocabulary is not None:
            files = files_of(vocabulary, data.context, begins=data.documents != "none")
        files |= files_about(opened.about, "hf-gpt2", _USE)
        for name, content in files.items():
            write(building / name, content)
        write(building / "generation_config.json", generation_config(opened))
        write_arrays(building / "model.safetensors", opened.state)
        architecture = "GPT2LMHeadModel" if opened.prefix else "GPT2Model"
        config = {"architectures": [architecture], **gpt2.gpt2_config(model), **opened.ids}
        write(building / "config.json", config)
    return folder


def _open(opened: Checkpoint) -> _Opened:
    config, progress = opened.config, opened.progress
    require_task(config, opened.path.parent.parent, LanguageModelConfig)
    config = dataclasses.replace(config, model=config.model.with_vocabulary(progress["vocab_size"]))
    gpt2.refuse_inexpressible(config.model)  # before the arrays are read
    has_vocabulary = any(map(opened.has, VOCABULARIES.names))
    vocabulary = vocabulary_of_checkpoint(opened, VOCABULARIES) if has_vocabulary else None
    kept = progress.get(_KEPT, {})
    prefix = kept.get("prefix", gpt2.PREFIX) if config.model.tied_embeddings != "none" else gpt2.PREFIX
    ids = {name: kept.get(name) for name in gpt2.SPECIAL_IDS}
    if vocabulary is not None and not kept:
        ids = special_ids(vocabulary)
    state = gpt2.to_gpt2(opened.finite_params(), config.model, prefix)
    return _Opened(config, state, prefix, vocabulary, ids, about(opened))


def generation_config(opened: _Opened) -> dict[str, Any]:
    """The generation_config.json: options of our decoding that theirs has, and the ids never generated."""
    d = opened.config.decode
    values: dict[str, Any] = {"max_length": opened.config.data.context, "do_sample": d.sample}
    if d.sample:
        values |= {"temperature": d.temperature, "top_k": d.top_k, "top_p": d.top_p, "min_p": d.min_p}
    else:
        values |= {"num_beams": d.beam_size}
        values["length_penalty"] = 0.0 if d.length_normalization == "none" else d.length_penalty
    if d.repetition_penalty != 1:
        values["repetition_penalty"] = d.repetition_penalty
    if d.no_repeat_ngram:
        values["no_repeat_ngram_size"] = d.no_repeat_ngram
    if d.min_length:
        values["min_new_tokens"] = d.min_length
    if d.banned and opened.vocabulary is not None:
        values["bad_words_ids"] = [opened.vocabulary.encode(phrase).tolist() for phrase in d.banned]
    if opened.vocabulary is not None:
        values["suppress_tokens"] = list(opened.vocabulary.banned) or None
    return values | opened.ids
