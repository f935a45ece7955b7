"""Folders of Hugging Face's BERT: import one as a workdir, export a workdir as one."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints, best_seed
from transformer.config import FinetuneConfig, LabelledConfig, MaskedConfig, ModelConfig, UserError
from transformer.data import wordpiece
from transformer.data.labels import FILE as LABELS
from transformer.data.labels import Labels
from transformer.data.wordpiece import EncoderVocabulary, WordPiece
from transformer.files import local_path, new_folder, path_of, require_new, writing
from transformer.inference.classifier import labels_in
from transformer.inference.pieces import encoder_vocabulary
from transformer.packages import require
from transformer.tasks.vocabulary import files_of as vocabulary_files
from transformer.tools.hf import bert
from transformer.tools.hf.fields import is_count
from transformer.tools.hf.folder import config_in, read_model, read_object, write, write_arrays
from transformer.tools.hf.sentences import warn_of_vectors
from transformer.tools.hf.vocabulary import of_size
from transformer.tools.model_card import About, about, files_about
from transformer.tools.new_workdir import new_workdir

_SHORTEST = 5  # the smallest data.context
_KEPT = "hf_bert"
"""Field of progress.json: what an imported folder says of itself besides the model, for a later export."""

_USE = """
Needs `pip install torch transformers`.

```python
from transformers import AutoTokenizer, {kind}

model, tokenizer = {kind}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
outputs = model(**tokenizer("A text.", return_tensors="pt"))
```
"""

log = logging.getLogger("transformer")


# ---- In --------------------------------------------------------------------------------------------------------------


def import_folder(folder: str, out: str) -> None:
    """Write a workdir with the model and the vocabulary of a folder that `save_pretrained` wrote.

    The classes are those of `bert.CLASSES`. Needs the packages safetensors and, if the folder has a tokenizer,
    tokenizers; but neither torch nor transformers. Raises `UserError` if `out` is not a new or empty folder, if the
    folder lacks a file or holds a damaged one, and for all that `bert.model_config`, `bert.from_bert`,
    `warn_of_vectors` and `vocabulary_in` refuse.
    """
    require("import --from hf-bert", "safetensors")
    require_new(path_of(out))
    file, values = config_in(folder)
    listed = values.get("architectures")
    kind = listed[0] if isinstance(listed, list) and listed else "AutoModel"
    bert.model_config(values, "none", file)  # raises before the arrays are read
    state = read_model(file.parent, kind)
    model = bert.model_config(values, bert.head_of(values, state, file), file)
    if left_out := bert.without_counterpart(values):
        log.warning("%s: these fields have no counterpart here and are left out: %s", file, ", ".join(left_out))
    config = run_config(model, file.parent)
    warn_of_vectors(file.parent)
    converted = bert.from_bert(state, model)
    vocabulary = vocabulary_in(file.parent, model.vocab_size)
    if converted.drawn:
        log.warning("%s: lacks %s: drawn anew, so train them before use", folder, ", ".join(converted.drawn))
    if converted.left_out:
        log.warning("%s: %s has no %s: left out", folder, bert.CLASSES[model.head], ", ".join(converted.left_out))
    kept: dict[str, Any] = {"prefix": bert.prefix_of(state)}
    kept |= {name: values[name] for name in bert.KEPT if name in values}
    if (options := file.with_name("tokenizer_config.json")).exists():
        kept["tokenizer_config"] = read_object(options)
    progress = {"step": 0, "vocab_size": model.vocab_size, "averaged_steps": [0], _KEPT: kept}
    files = {} if vocabulary is None else vocabulary_files(vocabulary)
    if (labels := bert.labels_of(values, model, file)) is not None:
        files |= dict([labels.file])
        data = LabelledConfig(kind=labels.kind, context=config.data.context)
        config = FinetuneConfig(model=model, data=data)
    new_workdir(out, converted.params, config, progress=progress, files=files)


def vocabulary_in(folder: Path, size: int) -> EncoderVocabulary | None:
    """The vocabulary of a folder for a model with `size` ids: tokenizer.json, else vocab.txt.

    None, with a warning, if the folder has neither. Raises `UserError` if it can't be read, or has more pieces.
    """
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).exists():
            return of_size(wordpiece.load(folder / name), size, folder)
    log.warning(
        "%s: no tokenizer.json and no vocab.txt: the model is imported without a vocabulary; it can't read text until "
        "it is imported with one",
        folder,
    )
    return None


def run_config(model: ModelConfig, folder: Path) -> MaskedConfig:
    """The config of a run of this model, with defaults for all but the length of rows.

    This is the longest text of sentence_bert_config.json, where there is one, else that of tokenizer_config.json, but
    at most the number of positions. Raises `UserError` if the first file can't be used.
    """
    context = model.max_positions
    if (options := folder / "tokenizer_config.json").exists():
        given = read_object(options).get("model_max_length")  # where it is not known, a number of thirty digits
        context = min(context, given) if is_count(given) and given >= _SHORTEST else context
    if (options := folder / "sentence_bert_config.json").exists():
        given = read_object(options).get("max_seq_length")
        if given is not None and not (is_count(given) and given >= _SHORTEST):
            raise UserError(f"{options}: max_seq_length = {given!r}: must be a whole number, at least {_SHORTEST}")
        context = context if given is None else min(model.max_positions, given)
    if context < _SHORTEST:
        raise UserError(
            f"{folder / 'config.json'}: max_position_embeddings = {context}: must be at least {_SHORTEST}, or no text "
            "fits"
        )
    default = MaskedConfig()
    data = dataclasses.replace(default.data, context=context, next_sentence=model.head == "pretraining")
    return dataclasses.replace(default, model=model, data=data)


# ---- Out -------------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    model: ModelConfig
    longest: int
    """Number of pieces of the longest text that the model reads."""
    state: dict[str, np.ndarray]
    vocabulary: WordPiece | None
    kept: dict[str, Any]
    """What an import kept."""
    labels: Labels | None
    """What the outputs of a head for labels mean; None if that is not known."""
    about: About


def export(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint of an encoder alone as a folder for the class of `bert.CLASSES` and for `AutoTokenizer`.

    Of a workdir with several seeds, that of the seed with the best score. `checkpoint` as in `transformer.load`. Needs
    the package safetensors, but neither torch nor transformers. Raises `UserError` if safetensors is missing, if `out`
    is not a new or empty folder, and as `bert.to_bert` does.
    """
    require("export --to hf-bert", "safetensors")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(best_seed(workdir)).read(checkpoint, _open)
    with writing(folder), new_folder(folder) as building:
        use = _USE.format(kind=bert.CLASSES[opened.model.head])
        for name, content in (_tokenizer(opened) | files_about(opened.about, "hf-bert", use)).items():
            write(building / name, content)
        write_arrays(building / "model.safetensors", opened.state)
        fields = {name: opened.kept[name] for name in bert.KEPT if name in opened.kept}
        if opened.labels is not None and not opened.kept:
            fields |= bert.fields_of(opened.labels)
        if opened.vocabulary is not None:
            fields["pad_token_id"] = opened.vocabulary.pad
        write(building / "config.json", bert.bert_config(opened.model) | fields)
    return folder


def _open(opened: Checkpoint) -> _Opened:
    model = opened.config.model.with_vocabulary(opened.progress["vocab_size"])
    if model.decoder_layers:
        raise UserError(
            f"{opened.path.parent.parent}: its task is {opened.config.task!r}; hf-bert needs an encoder alone"
        )
    bert.refuse_inexpressible(model)  # before the arrays are read
    kept = opened.progress.get(_KEPT, {})
    prefix = kept.get("prefix", "" if model.head == "none" else bert.PREFIX)
    has_vocabulary = any(map(opened.has, wordpiece.FILES))
    vocabulary = encoder_vocabulary(opened) if has_vocabulary else None
    if vocabulary is not None and not isinstance(vocabulary, WordPiece):
        raise UserError(f"{opened.path}: has a SentencePiece vocabulary; hf-bert needs a WordPiece vocabulary")
    labels, params = labels_in(opened) if opened.has(LABELS) else None, opened.finite_params()
    if labels is not None:
        params = bert.with_scale(params, labels)
    longest = min(opened.config.data.context, model.max_positions)
    return _Opened(model, longest, bert.to_bert(params, model, prefix), vocabulary, kept, labels, about(opened))


def _tokenizer(opened: _Opened) -> dict[str, Any]:
    """File name -> content, bytes or JSON, of the tokenizer for `AutoTokenizer.from_pretrained`."""
    vocabulary = opened.vocabulary
    if vocabulary is None:
        return {}
    special = ("pad", "unk", "cls", "sep", "mask")
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": opened.longest,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],  # else there are no token types
        **{f"{name}_token": vocabulary.name(getattr(vocabulary, name)) for name in special},
    }
    return {"tokenizer.json": vocabulary.file[1], "tokenizer_config.json": opened.kept.get("tokenizer_config", options)}
