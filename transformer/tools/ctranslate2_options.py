"""The options of our search by CTranslate2's names, for the programs in the README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformer.config import Config, DecodeConfig, LanguageModelConfig, ModelConfig
from transformer.tools.jax_export import new_pieces


def for_translation(config: Config, positions: int, banned: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The options of `translate_batch`. `positions`: the most of a text. `banned`: the pieces of `decode.banned`."""
    d = config.decode
    longest = min(d.max_source_length + 1, positions)  # with the end of sentence
    limits = {"max_input_length": longest, "min_decoding_length": d.min_length}
    limits["max_decoding_length"] = min(positions - 1, d.max_length or positions)
    return _search(d) | limits | _constraints(d, banned)


def for_generation(config: LanguageModelConfig, model: ModelConfig, banned: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The options of `generate_batch`."""
    limits = {"max_length": new_pieces(config, model), "min_length": config.decode.min_length}
    return _search(config.decode) | limits | _constraints(config.decode, banned)


def _search(d: DecodeConfig) -> dict[str, Any]:
    if d.sample:
        return {
            "beam_size": 1,
            "sampling_topk": d.top_k,
            "sampling_topp": d.top_p,
            "sampling_temperature": d.temperature,
        }
    alpha = 0 if d.length_normalization == "none" else d.length_penalty
    return {"beam_size": d.beam_size, "length_penalty": alpha}


def _constraints(d: DecodeConfig, banned: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Those that are in use."""
    given = {"no_repeat_ngram_size": d.no_repeat_ngram} if d.no_repeat_ngram else {}
    given |= {"repetition_penalty": d.repetition_penalty} if d.repetition_penalty != 1 else {}
    return given | ({"suppress_sequences": [list(pieces) for pieces in banned]} if banned else {})


def without_counterpart(d: DecodeConfig) -> list[str]:
    """A line of Markdown for each option of the search that CTranslate2 lacks."""
    found = []
    if d.length_normalization == "paper" and not d.sample:
        found.append(
            f"- A score is divided by length^length_penalty. The exported model's search divides by "
            f"((5 + length) / 6)^{d.length_penalty:g}, which has no counterpart."
        )
    if d.sample and d.min_p:
        found.append(f"- decode.min_p = {d.min_p:g} has no counterpart.")
    return found
