"""The options of decoding in a folder of Hugging Face's Marian, in generation_config.json, and ours.

Old versions of transformers wrote them to config.json.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import DecodeConfig, UserError, check_decode
from transformer.tools.hf.fields import is_count, is_number
from transformer.tools.hf.folder import read_object
from transformer.tools.hf.marian import SPECIAL_IDS, ids_of
from transformer.tools.hf.names import refuse

# Fields of theirs -> the values that change nothing. Other values are named in a warning.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "early_stopping": (False, "never"),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "num_return_sequences": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "min_new_tokens": (0,),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "temperature": (1,),
    "top_k": (50, 0),
    "top_p": (1,),
}
_WITHOUT_EFFECT = (
    *("_from_model_config", "transformers_version", "use_cache", "forced_eos_token_id", "bos_token_id", "pad_token_id"),
    *("eos_token_id", "decoder_start_token_id", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "return_dict_in_generate"),
)
_READ = (
    *("num_beams", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size"),
    *("repetition_penalty", "bad_words_ids", "suppress_tokens", "renormalize_logits"),
)

log = logging.getLogger("transformer")


class Generation(NamedTuple):
    """The options of decoding of a folder."""

    decode: DecodeConfig
    suppressed: tuple[int, ...]
    """The ids, of theirs, that are never generated."""
    phrases: tuple[tuple[int, ...], ...]
    """The sequences of several ids, of theirs, that are never generated."""
    renormalized: bool
    """Whether the probabilities of the other pieces add up to 1."""
    fields: frozenset[str]
    """The fields of config.json that are such options."""


def generation_in(values: Mapping[str, Any], where: Path) -> Generation:
    """The options of generation_config.json beside `where`, else those among `values`, the content of config.json.

    Raises `UserError` that lists the fields with a wrong value, and the special ids that differ from those of
    config.json. A warning names the fields that have no counterpart here.
    """
    fields = frozenset((*_READ, *_NEUTRAL, *_WITHOUT_EFFECT))
    path = where.with_name("generation_config.json")
    if path.exists():
        given = read_object(path)
        unknown = sorted(given.keys() - fields)
        refuse(str(path), _other_ids(given, values))
    else:
        path, unknown = where, []
        given = {name: value for name, value in values.items() if name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    unknown += [name for name, neutral in _NEUTRAL.items() if name in given and given[name] not in neutral]
    suppressed, phrases = _suppressed(given, path)
    if unknown:
        log.warning("%s: these options have no counterpart here and are left out: %s", path, ", ".join(unknown))
    return Generation(_decode(given, path), suppressed, phrases, given.get("renormalize_logits", False), fields)


def _other_ids(given: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """A message for each special id in generation_config.json, by which theirs decodes, that config.json has not."""
    ids = {name: values.get(name, default) for name, default in SPECIAL_IDS.items()}
    return [
        f"{name} = {given[name]!r}, but config.json has {id!r}, and our model has one for both; make them equal"
        for name, id in ids.items()
        if given.get(name) not in (None, id, [id])
    ]


def _decode(given: Mapping[str, Any], where: Path) -> DecodeConfig:
    """Our options. A length of theirs counts the piece that the decoder begins with, and the end of sentence."""
    beams, alpha = given.get("num_beams", 1), given.get("length_penalty", 1.0)
    n_gram, repetition = given.get("no_repeat_ngram_size", 0), given.get("repetition_penalty", 1.0)
    name, fewest = ("max_new_tokens", 2) if "max_new_tokens" in given else ("max_length", 3)
    most, least, normalize = given.get(name, 512), given.get("min_length", 0), given.get("renormalize_logits", False)
    wrong = [f"num_beams = {beams!r}: must be a whole number, at least 1"] * (not is_count(beams))
    wrong += [f"length_penalty = {alpha!r}: must be from 0 to 5"] * (not is_number(alpha, 0, 5))
    wrong += [f"no_repeat_ngram_size = {n_gram!r}: must be a whole number"] * (type(n_gram) is not int or n_gram < 0)
    wrong += [f"repetition_penalty = {repetition!r}: must be above 0"] * (not is_number(repetition, 1e-6, 1e6))
    wrong += [f"{name} = {most!r}: must be a whole number, at least {fewest}"] * (not is_count(most) or most < fewest)
    wrong += [f"min_length = {least!r}: must be a whole number"] * (type(least) is not int or least < 0)
    wrong += [f"renormalize_logits = {normalize!r}: must be true or false"] * (not isinstance(normalize, bool))
    refuse(str(where), wrong)
    most += name == "max_new_tokens"  # the piece that the decoder begins with
    decode = DecodeConfig(
        beam_size=beams,
        length_penalty=float(alpha),
        length_normalization="fairseq" if alpha else "none",
        max_length=most - 2,
        min_length=max(0, min(least, most) - 2),
        no_repeat_ngram=n_gram,
        repetition_penalty=float(repetition),
    )
    try:
        check_decode(decode)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return decode


def _suppressed(given: Mapping[str, Any], where: Path) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The ids that are never generated, and the sequences of several ids that are not."""
    words, tokens = given.get("bad_words_ids", []), given.get("suppress_tokens", [])
    lists = isinstance(words, list) and all(isinstance(word, list) and word for word in words)
    if not lists or not isinstance(tokens, list) or not all(type(i) is int for i in itertools.chain(tokens, *words)):
        raise UserError(f"{where}: bad_words_ids must be a list of lists of ids, and suppress_tokens a list of ids")
    single = {word[0] for word in words if len(word) == 1}
    return tuple(sorted(single.union(tokens))), tuple(tuple(word) for word in words if len(word) > 1)


def generation_config(d: DecodeConfig, special: Mapping[str, int], banned: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The generation_config.json: those options of our search that theirs has.

    `special`: as in `marian.special_ids`. `banned`: their ids of the phrases that must not occur. Theirs can only
    divide by length^alpha ('fairseq'); the paper's penalty is replaced by that one with the same alpha.
    """
    most = d.max_source_length + d.max_extra_length
    values = {
        "num_beams": d.beam_size,
        "length_penalty": 0.0 if d.length_normalization == "none" else d.length_penalty,
        "max_length": (most if d.max_length is None else min(most, d.max_length)) + 2,
        "suppress_tokens": sorted({special["pad"], special["start"]} - {special["eos"]}),
        **ids_of(special),
    }
    if d.sample:
        values |= {"num_beams": 1, "do_sample": True, "temperature": d.temperature, "top_k": d.top_k, "top_p": d.top_p}
        values |= {"min_p": d.min_p} if d.min_p else {}
    if d.min_length:
        values["min_length"] = d.min_length + 2
    if d.no_repeat_ngram:
        values["no_repeat_ngram_size"] = d.no_repeat_ngram
    if d.repetition_penalty != 1:
        values["repetition_penalty"] = d.repetition_penalty
    if banned:
        values["bad_words_ids"] = [list(ids) for ids in banned]
    return values
