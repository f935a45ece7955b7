"""The endpoints of models that write: translation, and language models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from transformer.config import EOS, DecodeConfig, UserError
from transformer.inference.attention import of_text, of_translation
from transformer.inference.stream import details_of, has_score, translated
from transformer.tools.page import search
from transformer.tools.page.answers import attention
from transformer.tools.page.fields import (
    ATTENTION,
    MOST_BEAMS,
    MOST_PIECES,
    NUMBER,
    NUMBER_OR_NULL,
    PACKED,
    TEXT,
    WHOLE,
    Endpoint,
    Field,
    Wrong,
    array,
    check_filled,
    check_pieces,
    each,
    obj,
)

if TYPE_CHECKING:
    from transformer.inference.generator import Generator
    from transformer.inference.translator import Translator

OPTIONS = {
    "beam_size": Field("integer", "Number of hypotheses of the search; 1 = greedy search.", least=1, most=MOST_BEAMS),
    "n_best": Field("integer", "Number of outputs; of a search, at most beam_size.", least=1, most=MOST_BEAMS),
    "length_penalty": Field("number", "Alpha of the length penalty.", least=0, most=5),
    "max_extra_length": Field(
        "integer",
        "Number of pieces by which a translation may exceed its source; of a language model, of new pieces.",
        least=0,
        most=MOST_PIECES,
    ),
    "sample": Field("boolean", "Draw outputs at random instead of searching."),
    "temperature": Field("number", "Sampling: below 1, likely pieces become more likely.", least=0.01, most=100),
    "top_k": Field("integer", "Sampling: only from so many likeliest pieces; 0 = all.", least=0, most=1_000_000),
    "top_p": Field("number", "Sampling: only from the likeliest pieces of this probability.", least=0.001, most=1),
    "seed": Field("integer", "Sampling: random seed.", least=0, most=2**32 - 1),
}
_SEARCH = Field("boolean", "Also give the record of the search, in the field search.")


def configured(config: DecodeConfig, request: Mapping[str, Any]) -> DecodeConfig:
    """The options of the search for a request: those of the model, within the bounds, with those of the request.

    Raises `Wrong` if they do not go together.
    """
    given = {name: request[name] for name in OPTIONS if name in request}
    beams = given.get("beam_size", min(config.beam_size, MOST_BEAMS))
    n_best = given.get("n_best", min(config.n_best, MOST_BEAMS))
    if not given.get("sample", config.sample) and n_best > beams:
        if "n_best" in given and "beam_size" in given:
            raise Wrong("n_best", f"must be at most beam_size, {beams}")
        beams, n_best = (n_best, n_best) if "n_best" in given else (beams, beams)
    longest = {
        "max_extra_length": min(config.max_extra_length, MOST_PIECES),
        "max_length": min(config.max_length or 2 * MOST_PIECES, 2 * MOST_PIECES),
    }
    return dataclasses.replace(config, **{**longest, **given, "beam_size": beams, "n_best": n_best})


class Translation:
    """A model that translates."""

    task = "translation"

    def __init__(self, translator: Translator):
        self.models, config = translator.models, configured(translator.config, {})
        self._table = self._positions()
        most = int(min(config.max_length or math.inf, self._table - 1))  # whatever max_extra_length a request has
        self.config = dataclasses.replace(config, max_length=most)
        self._translator = translator.with_config(self.config)
        self._longest = min(MOST_PIECES, config.max_source_length, self._table - 1)
        self._with = lru_cache(64)(self._translator.with_config)
        source = Field("string", "The text to be translated, a sentence.", needed=True)
        details = {
            **{"pieces": array(TEXT), "log_probs": array(NUMBER_OR_NULL)},
            **{"source_pieces": array(TEXT), "alignment": array(WHOLE)},
        }
        found = {"translation": TEXT, "score": NUMBER_OR_NULL}
        self.endpoints = {
            "translate": Endpoint(
                "Translate a sentence.",
                {
                    "source": source,
                    "prefix": Field("string", "The beginning of the translation; it may end within a word."),
                    **OPTIONS,
                    "details": Field("boolean", "Also give pieces, log_probs, source_pieces and alignment."),
                    "search": _SEARCH,
                },
                obj(
                    {"source": TEXT, "prefix": TEXT, **found, "n_best": array(obj(found)), **details}
                    | {"search": search.SCHEMA},
                    ["prefix", "n_best", *details, "search"],
                ),
                self._translate,
                self._group,
            ),
            "score": Endpoint(
                "Score a translation that is given.",
                {"source": source, "target": Field("string", "The translation.", needed=True)},
                obj({"source": TEXT, "target": TEXT, "score": NUMBER_OR_NULL, **details}),
                self._score,
            ),
            "attention": Endpoint(
                "All attention weights of one pass over a sentence and its translation.",
                {
                    "source": source,
                    "target": Field("string", "The translation; by default the one that the model finds."),
                    "packed": PACKED,
                },
                ATTENTION,
                self._attention,
            ),
        }

    def described(self) -> dict[str, Any]:
        """What `model` says of this kind of model."""
        return {"vocabulary": self._translator.tokenizer.vocab_size, "longest": int(self._longest)}

    def warm_up(self) -> None:
        """Compile the programs for sentences of up to 31 pieces, also with a prefix."""
        self._translator.recorded(["a " * 12])
        self._translator.recorded(["a " * 12], prefixes=["a"])  # later translators share the tables of prefixes

    def _positions(self) -> float:
        learned = [m.config.max_positions for m in self.models if m.config.positions == "learned"]
        return min(learned, default=math.inf)

    def _group(self, request: Mapping[str, Any]) -> Hashable:
        """Requests are decoded together if they have the same options."""
        return configured(self.config, request), bool(request.get("prefix"))

    def _check(self, request: Mapping[str, Any], *targets: str) -> None:
        tokenizer = self._translator.tokenizer
        check_filled("source", request["source"])
        check_pieces("source", len(tokenizer.encode([request["source"]])[0]), self._longest)
        c = configured(self.config, request)
        most = min(c.max_source_length + c.max_extra_length, self._table - 1)
        for name in targets:
            if name in request:
                check_pieces(name, len(tokenizer.encode([request[name]], "target")[0]), most)

    def _translate(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        checked = each(requests, lambda request: self._check(request, "prefix"))
        right = [request for request, error in zip(requests, checked, strict=True) if error is None]
        translator = self._with(configured(self.config, requests[0]))
        prefixes = [request.get("prefix", "") for request in right]
        sources = [request["source"] for request in right]
        results = iter(translator.recorded(sources, prefixes=prefixes if any(prefixes) else None, stop=stop))
        return [self._translated(r, *next(results)) if e is None else e for r, e in zip(requests, checked, strict=True)]

    def _translated(self, request: dict[str, Any], hypotheses: Sequence[Any], record: Any) -> dict[str, Any]:
        n_best = configured(self.config, request).n_best
        tokenizer = self._translator.tokenizer
        found = {name: request[name] for name in ("source", "prefix") if name in request}
        found |= translated(hypotheses, n_best)
        if request.get("details") and has_score(hypotheses):
            (source,) = self._translator.encode([request["source"]], None)
            found |= details_of(self._translator.score_pieces([source], [hypotheses[0].tokens])[0])
        if request.get("search"):
            spelling = search.Spelling(tokenizer.spelling, "\u2581")
            found["search"] = search.as_json(record, tokenizer.piece, spelling, EOS, n_best)
        return found

    def _score(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        def answer(request: dict[str, Any]) -> dict[str, Any]:
            self._check(request, "target")
            (scored,) = self._translator.score([request["source"]], [request["target"]])
            return request | {"score": scored.score} | details_of(scored)

        return each(requests, answer)

    def _attention(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        def answer(request: dict[str, Any]) -> dict[str, Any]:
            self._check(request, "target")
            return attention(request, of_translation(self._translator, request["source"], request.get("target")))

        return each(requests, answer)


class Language:
    """A language model."""

    task = "language_model"

    def __init__(self, generator: Generator):
        self.config = configured(generator.config, {})
        self._generator = generator.with_config(self.config)
        self._with = lru_cache(64)(self._generator.with_config)
        found = {"text": TEXT, "log_prob": NUMBER_OR_NULL, "pieces": array(TEXT)}
        text = Field("string", "The text.", needed=True)
        self.endpoints = {
            "generate": Endpoint(
                "Go on from a prompt.",
                {
                    "prompt": Field("string", "The beginning of the text; it may be empty.", needed=True),
                    "stop": Field("strings", "The text ends before the first of these strings."),
                    **OPTIONS,
                    "search": _SEARCH,
                },
                obj(
                    {"prompt": TEXT, **found, "n_best": array(obj(found)), "search": search.SCHEMA},
                    ["n_best", "search"],
                ),
                self._generate,
                self._group,
            ),
            "score": Endpoint(
                "The log-probability of each piece of a text.",
                {"text": text},
                obj({"text": TEXT, "log_prob": NUMBER, "pieces": array(TEXT), "log_probs": array(NUMBER_OR_NULL)}),
                self._score,
            ),
            "attention": Endpoint(
                "All attention weights of one pass over a text.",
                {"text": text, "packed": PACKED},
                ATTENTION,
                self._attention,
            ),
        }

    def described(self) -> dict[str, Any]:
        longest = min(MOST_PIECES, self._generator.context or MOST_PIECES)
        return {"vocabulary": self._generator.vocabulary.size, "longest": longest}

    def warm_up(self) -> None:
        """Compile the programs for short prompts."""
        self._generator.recorded([""])

    def _group(self, request: Mapping[str, Any]) -> Hashable:
        return configured(self.config, request), tuple(request.get("stop", ()))

    def _check(self, name: str, text: str) -> None:
        most = MOST_PIECES if self._generator.context is None else self._generator.context
        check_pieces(name, len(self._generator.vocabulary.encode(text)) + 1, min(most, MOST_PIECES) + 1)

    def _generate(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        checked = each(requests, lambda request: self._check("prompt", request["prompt"]))
        right = [request for request, error in zip(requests, checked, strict=True) if error is None]
        config = configured(self.config, requests[0])
        ends, prompts = requests[0].get("stop", ()), [request["prompt"] for request in right]
        results = iter(self._with(config).recorded(prompts, stop=ends, ended=stop) if right else ())
        return [
            self._generated(request, *next(results), config.n_best) if error is None else error
            for request, error in zip(requests, checked, strict=True)
        ]

    def _generated(self, request: dict[str, Any], texts: Sequence[Any], record: Any, n_best: int) -> dict[str, Any]:
        vocabulary = self._generator.vocabulary
        found = [{"text": one.text, "log_prob": one.log_prob, "pieces": vocabulary.pieces(one.tokens)} for one in texts]
        answer = {"prompt": request["prompt"]} | (found[0] if found else {"text": "", "log_prob": None, "pieces": []})
        if n_best > 1:
            answer["n_best"] = found
        if request.get("search"):
            name = lambda piece: vocabulary.pieces([piece])[0]  # noqa: E731
            spelling = search.Spelling(vocabulary.spelling, "")
            answer["search"] = search.as_json(record, name, spelling, vocabulary.end, n_best)
        return answer

    def _score(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        def answer(request: dict[str, Any]) -> dict[str, Any]:
            self._check("text", request["text"])
            (one,) = self._generator.score([request["text"]])
            return request | {"log_prob": one.log_prob, "pieces": one.pieces, "log_probs": one.log_probs}

        return each(requests, answer)

    def _attention(self, requests: Sequence[dict[str, Any]], stop: Any) -> list[dict[str, Any] | UserError]:
        def answer(request: dict[str, Any]) -> dict[str, Any]:
            self._check("text", request["text"])
            return attention(request, of_text(self._generator, request["text"]))

        return each(requests, answer)
