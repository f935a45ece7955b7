"""Folders of Hugging Face's Marian: import one as a workdir, Opus-MT's included; export a workdir as one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, Config, UserError, check, require_translation
from transformer.data.foreign import refuse_other
from transformer.data.marian import MarianTokenizer
from transformer.data.tokenizer import Tokenizer
from transformer.files import local_path, new_folder, path_of, require_new, writing
from transformer.model import Params
from transformer.packages import require
from transformer.tasks.vocabulary import files_of, vocabulary_in
from transformer.tools.hf import marian
from transformer.tools.hf.folder import config_in, read, read_model, read_object, write, write_arrays
from transformer.tools.hf.marian_generation import Generation, generation_config, generation_in
from transformer.tools.hf.marian_readme import readme
from transformer.tools.hf.names import flat
from transformer.tools.model_card import About, about, files_about
from transformer.tools.new_workdir import new_workdir
from transformer.tools.tokenizer_files import refuse_twins

_KEPT = "hf_marian"
"""Field of progress.json: the files of an imported folder, for a later export."""
_AS_THEY_CAME = ("config.json", "generation_config.json", "tokenizer_config.json")

log = logging.getLogger("transformer")


# ---- In --------------------------------------------------------------------------------------------------------------


def import_folder(folder: str, out: str) -> None:
    """Write a workdir with the model and the tokenizer of a folder that `MarianMTModel.save_pretrained` and
    `MarianTokenizer.save_pretrained` wrote, or `export`.

    Needs the package safetensors, but neither torch nor transformers. Raises `UserError` if `out` is not a new or empty
    folder, if the folder lacks a file or holds a damaged one, and for all that `marian.model_config`,
    `generation_in`, `tokenizer_in` and `marian.from_marian` refuse.
    """
    require("import --from hf-marian", "safetensors")
    require_new(path_of(out))
    file, values = config_in(folder)
    model, generation = marian.model_config(values, file), generation_in(values, file)
    if left_out := marian.without_counterpart({k: v for k, v in values.items() if k not in generation.fields}):
        log.warning("%s: these fields have no counterpart here and are left out: %s", file, ", ".join(left_out))
    state = read_model(file.parent, "MarianMTModel")
    marian.refuse_more_pieces(model, state, file)
    tokenizer = tokenizer_in(file.parent, marian.special_ids(values), model.vocab_size)
    model = marian.with_options_of(model, values, state, file)
    ids = tokenizer.their_ids if isinstance(tokenizer, MarianTokenizer) else range(model.vocab_size)
    params = marian.from_marian(state, model, model.vocab_size, ids)
    biases = _suppress(params, generation, ids) if model.output_bias else {}
    phrases = generation.phrases if model.output_bias else (*((i,) for i in generation.suppressed), *generation.phrases)
    decode = dataclasses.replace(generation.decode, banned=_texts(phrases, tokenizer, ids, file))
    generation = generation._replace(decode=decode)
    config = _run_config(dataclasses.replace(model, vocab_size=len(ids)), values, generation, file)
    kept = {name: read_object(file.with_name(name)) for name in _AS_THEY_CAME if file.with_name(name).exists()}
    progress = {"step": 0, "vocab_size": len(ids), "averaged_steps": [0], _KEPT: {"files": kept, "biases": biases}}
    new_workdir(out, params, config, progress=progress, files=files_of(tokenizer))


def tokenizer_in(folder: Path, special: dict[str, int], vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder: source.spm, target.spm and vocab.json, with the names in tokenizer_config.json.

    If an export of ours wrote these, then the tokenizer is the one that was exported. `special`: ids of config.json.
    Raises `UserError` if a file is missing or can't be read, and for a vocabulary that does not fit the model.
    """
    names = ("source.spm", "target.spm", "vocab.json")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(f"{folder}: holds no {', '.join(missing)}; give the folder with the tokenizer of the model")
    options = read_object(path) if (path := folder / "tokenizer_config.json").exists() else {}
    if options.get("separate_vocabs"):
        raise UserError(f"{path}: separate_vocabs = true: our model has one vocabulary for both sides")
    for name in names[:2]:
        refuse_other(folder / name, "a SentencePiece model")
    source, target = (read(folder / name) for name in names[:2])
    ours, _ = (Tokenizer(model, folder / name) for name, model in zip(names, (source, target), strict=False))
    vocabulary, path = read_object(folder / "vocab.json"), folder / "vocab.json"
    in_our_order = special == {"pad": PAD, "eos": EOS, "start": BOS} and ours.vocab_size == vocab_size
    if (
        in_our_order
        and ours.model_of("target") == target
        and vocabulary == {ours.piece(i): i for i in range(vocab_size)}
    ):
        return ours
    pieces = _pieces(vocabulary, vocab_size, path)
    ids = {name: _special(name, options, vocabulary, path) for name in ("pad", "eos", "unk")}
    if wrong := [name for name in ("pad", "eos") if ids[name] != special[name]]:
        listed = "; ".join(
            f"{name}_token_id = {special[name]}, but its id in vocab.json is {ids[name]}" for name in wrong
        )
        raise UserError(f"{folder / 'config.json'}: {listed}; give the tokenizer of this model")
    return MarianTokenizer(source, target, pieces, {**ids, "start": special["start"]}, path)


def _pieces(vocabulary: dict[str, Any], vocab_size: int, path: Path) -> list[str]:
    """The pieces of a vocab.json by their ids. If the model has more ids, these get pieces that occur in no text."""
    if wrong := [piece for piece, id in vocabulary.items() if type(id) is not int]:
        raise UserError(f"{path}: the id of {wrong[0]!r} is {vocabulary[wrong[0]]!r}: must be a whole number")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(f"{path}: the ids of its {len(vocabulary):,} pieces must be 0 to {len(vocabulary) - 1:,}")
    if len(vocabulary) > vocab_size:
        raise UserError(
            f"{path}: has {len(vocabulary):,} pieces, but config.json has vocab_size {vocab_size:,}; give the "
            "tokenizer of this model"
        )
    if lacking := vocab_size - len(vocabulary):
        log.warning("%s: the last %s ids of the model have no piece in it", path, f"{lacking:,}")
    return [
        *sorted(vocabulary, key=vocabulary.__getitem__),
        *(f"<unused_{i}>" for i in range(len(vocabulary), vocab_size)),
    ]


def _special(name: str, options: dict[str, Any], vocabulary: dict[str, int], path: Path) -> int:
    """The id of a special piece, whose text tokenizer_config.json may change."""
    default = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}[name]
    piece = options.get(f"{name}_token", default)
    piece = piece.get("content") if isinstance(piece, dict) else piece
    if not isinstance(piece, str) or piece not in vocabulary:
        raise UserError(f"{path}: has no piece {piece!r}, the {name}_token of the tokenizer; give the whole vocabulary")
    return vocabulary[piece]


def _suppress(params: Params, generation: Generation, ids: Any) -> dict[str, float]:
    """Set the output bias of pieces that theirs never generates to `NEVER`, as far as this changes outputs or scores.

    Changes `params`. Returns the biases that they had, by our ids.
    """
    ours = [i for i, id in enumerate(ids) if id in generation.suppressed and i != BOS]
    ours = [i for i in ours if i != PAD or generation.renormalized]  # our search leaves out PAD after the softmax
    if not ours:
        return {}
    before = {str(i): float(params["output_bias"][i]) for i in ours}
    params["output_bias"][ours] = marian.NEVER
    return before


def _texts(
    phrases: Iterable[tuple[int, ...]], tokenizer: Tokenizer, ids: Sequence[int], where: Path
) -> tuple[str, ...]:
    """The texts of phrases, given by their ids, for `decode.banned`. Special pieces are left out: our search never
    chooses them. A warning names other phrases that the tokenizer does not make of a text."""
    ours = {id: i for i, id in reversed(list(enumerate(ids)))}
    texts, lacking = [], []
    for phrase in phrases:
        pieces = [ours.get(id, UNK) for id in phrase]
        text = tokenizer.decode([pieces])[0]
        if text.strip() and tokenizer.encode([text], "target") == [pieces]:
            texts.append(text)
        elif pieces not in ([PAD], [BOS]):
            lacking.append(str(list(phrase)))
    if lacking:
        log.warning(
            "%s: bad_words_ids or suppress_tokens %s: left out, no text has these pieces", where, ", ".join(lacking)
        )
    return tuple(texts)


def _run_config(model: Any, values: dict[str, Any], generation: Generation, where: Path) -> Config:
    """The config of a run of this model: its options of decoding, and the defaults."""
    default = Config()
    positions = values.get("max_position_embeddings", 1_024)
    longest = max(1, min(default.decode.max_source_length, positions - 1))
    limit = generation.decode.max_length or positions - 1
    decode = dataclasses.replace(generation.decode, max_source_length=longest, max_extra_length=limit)
    options = read_object(path) if (path := where.with_name("tokenizer_config.json")).exists() else {}
    languages = tuple(options.get(f"{side}_lang") for side in ("source", "target"))
    known = all(isinstance(one, str) and one.isalpha() for one in languages) and len(set(languages)) == 2
    data = dataclasses.replace(default.data, languages=languages if known else None, normalization="identity")
    config = Config(model=model, data=data, decode=decode)
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


# ---- Out -------------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    config: Config
    state: dict[str, np.ndarray]
    tokenizer: Tokenizer
    pieces: list[str]
    """The pieces by their ids."""
    special: dict[str, int]
    """As in `marian.special_ids`."""
    banned: list[list[int]]
    """Their ids of the phrases of `decode.banned`."""
    kept: dict[str, Any]
    """The content of files that come out as they came in."""
    about: About


def export(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint as a folder for `AutoModelForSeq2SeqLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    `checkpoint` as in `transformer.load`. A model that was imported and not trained since comes back as it was. Needs
    the package safetensors, but neither torch nor transformers. Raises `UserError` if safetensors is missing, if `out`
    is not a new or empty folder, and as `marian.to_marian` does.
    """
    require("export --to hf-marian", "safetensors")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(workdir).read(checkpoint, _open)
    config, tokenizer = opened.config, opened.tokenizer
    with writing(folder), new_folder(folder) as building:
        for side in ("source", "target"):
            write(building / f"{side}.spm", tokenizer.model_of(side))
        write(building / "vocab.json", {piece: i for i, piece in enumerate(opened.pieces)})
        made = {
            "tokenizer_config.json": _tokenizer_config(opened),
            "generation_config.json": generation_config(config.decode, opened.special, opened.banned),
            "config.json": marian.marian_config(config, len(opened.pieces), opened.special),
        }
        start = opened.pieces[opened.special["start"]] if opened.special["start"] != opened.special["pad"] else None
        for name, content in files_about(opened.about, "hf-marian", readme(config, tokenizer, start)).items():
            write(building / name, content)
        write_arrays(building / "model.safetensors", opened.state)
        for name, content in made.items():
            write(building / name, opened.kept.get(name, content))
    return folder


def _open(opened: Checkpoint) -> _Opened:
    config = opened.config
    require_translation(config, opened.path.parent.parent)
    marian.refuse_inexpressible(config.model)  # before the arrays are read
    tokenizer, params = vocabulary_in(opened), opened.finite_params()
    kept = opened.progress.get(_KEPT, {"files": {}, "biases": {}})
    pieces, ids = _their_pieces(tokenizer, params)
    if kept["biases"]:
        bias = np.array(params["output_bias"])
        bias[[int(i) for i in kept["biases"]]] = list(kept["biases"].values())
        params = {**params, "output_bias": bias}
    refuse_twins(pieces, "Marian")
    state = marian.to_marian(params, config.model, len(pieces), ids)
    phrases = tokenizer.encode(config.decode.banned, "target") if config.decode.banned else []
    banned = [[ids[i] for i in phrase] for phrase in phrases]
    special = {"pad": ids[PAD], "eos": ids[EOS], "start": ids[BOS]}
    files = {name: _in_float32(content) for name, content in kept["files"].items()}
    return _Opened(config, state, tokenizer, pieces, special, banned, files, about(opened))


def _their_pieces(tokenizer: Tokenizer, params: Params) -> tuple[list[str], list[int]]:
    """The pieces by their ids, and their id of each of our pieces.

    If the vocabulary lacks BOS, then BOS shares the id of the piece whose embedding it has. It becomes a new piece if
    training has changed its embedding since, or if it can be generated.
    """
    if not isinstance(tokenizer, MarianTokenizer):
        return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)], list(range(tokenizer.vocab_size))
    pieces, ids = list(tokenizer.pieces), list(tokenizer.their_ids)
    if tokenizer.adds_bos:
        twin = next(i for i, id in enumerate(ids) if id == ids[BOS] and i != BOS)
        arrays = flat({name: params[name] for name in ("embedding", "output_bias")})
        table, bias = arrays["embedding/table"], arrays["output_bias"]
        if not np.array_equal(table[BOS], table[twin]) or bias[BOS] != marian.NEVER:
            ids[BOS] = len(pieces)
            pieces.append(next(name for name in (SPECIALS[BOS], "<start>", "<decoder_start>") if name not in pieces))
    return pieces, ids


def _in_float32(content: dict[str, Any]) -> dict[str, Any]:
    """A kept JSON file, with the type of the arrays that an export writes, if the file names one."""
    return {name: "float32" if name in ("dtype", "torch_dtype") else value for name, value in content.items()}


def _tokenizer_config(opened: _Opened) -> dict[str, Any]:
    languages = dict(zip(("source_lang", "target_lang"), opened.config.data.languages or (), strict=False))
    pad, eos = (opened.pieces[opened.special[name]] for name in ("pad", "eos"))
    unk = SPECIALS[-1]
    if isinstance(opened.tokenizer, MarianTokenizer):
        unk = opened.pieces[opened.tokenizer.special["unk"]]
    return {
        "tokenizer_class": "MarianTokenizer",
        **languages,
        "pad_token": pad,
        "bos_token": opened.pieces[opened.special["start"]],
        "eos_token": eos,
        "unk_token": unk,
        "separate_vocabs": False,
        # A special piece never comes from text, which may well hold "</s>".
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": opened.config.decode.max_source_length + 1,
    }
