"""The endpoints of models that read: labels of texts, trees of sentences, masked language models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformer.config import UserError
from transformer.data.labelled import words_in
from transformer.data.trees import Tree, spoken
from transformer.inference.attention import of_encoder, of_labelled, of_parse
from transformer.inference.filler import with_masks
from transformer.tools.page.answers import attention
from transformer.tools.page.fields import (
    ATTENTION,
    MOST_PIECES,
    NUMBER,
    NUMBER_OR_NULL,
    PACKED,
    TEXT,
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
    from transformer.inference.attention import Attended
    from transformer.inference.classifier import Classifier
    from transformer.inference.embedder import Embedder
    from transformer.inference.filler import Filler
    from transformer.inference.parser import Parser

_TEXT = Field("string", "The text.", needed=True)
_MOST_WORDS = 256
"""The most words of a sentence to be parsed: its tree has up to four times as many symbols."""


class _Reading:
    """What the kinds of models here have in common: `predict` and `attention`, of the same fields."""

    task: str

    def __init__(self, told: str, fields: Mapping[str, Field], answer: Mapping[str, Any]):
        self.endpoints = {
            "predict": Endpoint(told, fields, dict(answer), lambda requests, stop: each(requests, self.predict)),
            "attention": Endpoint(
                "All attention weights of one pass.",
                {**fields, "packed": PACKED},
                ATTENTION,
                lambda requests, stop: each(requests, lambda request: attention(request, self.attended(request))),
            ),
        }

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def attended(self, request: dict[str, Any]) -> Attended:
        raise NotImplementedError

    def warm_up(self) -> None:
        """Compile the programs for a short text."""
        self.predict({name: "a" for name, field in self.endpoints["predict"].fields.items() if field.needed})


class Labels(_Reading):
    """A model that labels texts."""

    task = "finetune"

    def __init__(self, classifier: Classifier):
        self._classifier, self._labels = classifier, classifier.labels
        kind, pairs = self._labels.kind, self._labels.pairs
        second = Field("string", "The second text of the pair.", needed=pairs is True)
        fields = {"text": _TEXT} if kind == "tags" or pairs is False else {"text": _TEXT, "second": second}
        tags = {"words": array(TEXT), "label": array(TEXT), "probability": array(NUMBER_OR_NULL)}
        found = {
            "tags": obj(tags),
            "regression": obj({"text": TEXT, "second": TEXT, "label": NUMBER}, ["second"]),
            "classes": obj(
                {"text": TEXT, "second": TEXT, "label": TEXT, "probability": NUMBER}
                | {"probabilities": {"type": "object", "additionalProperties": NUMBER}},
                ["second"],
            ),
        }
        super().__init__("Label a text.", fields, found[kind])

    def described(self) -> dict[str, Any]:
        longest = min(MOST_PIECES, self._classifier.longest or MOST_PIECES)
        labels = {"kind": self._labels.kind, "labels": list(self._labels.names)}
        return {"vocabulary": self._classifier.vocabulary.size, "longest": longest, **labels}

    def _parts(self, request: Mapping[str, Any]) -> list[str]:
        """The text, the pair or the words of a request, checked."""
        texts = [request[name] for name in ("text", "second") if name in request]
        for name, text in zip(("text", "second"), texts, strict=False):
            check_filled(name, text)
        parts = words_in(texts[0]) if self._labels.kind == "tags" else texts
        rows = self._classifier.encode([parts])
        longest = min(MOST_PIECES, self._classifier.longest or MOST_PIECES)
        if rows[0].cut or len(rows[0].ids) > longest:
            raise Wrong("text", f"has more than the {longest} pieces that this model reads at once; make it shorter")
        return parts

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        parts = self._parts(request)
        (found,) = self._classifier.classify([parts])
        if found.label is None:
            raise UserError("the model's numbers are not finite; choose another checkpoint")
        given = {"words": parts} if self._labels.kind == "tags" else dict(zip(("text", "second"), parts, strict=False))
        return given | {name: x for name, x in found._asdict().items() if name == "label" or x is not None}

    def attended(self, request: dict[str, Any]) -> Attended:
        return of_labelled(self._classifier, self._parts(request))


class Trees(_Reading):
    """A parser."""

    task = "parsing"

    def __init__(self, parser: Parser):
        self._parser = parser
        sentence = Field("string", "The sentence: words with spaces between them.", needed=True)
        super().__init__(
            "Find the tree of a sentence.",
            {"text": sentence},
            obj({"text": TEXT, "tree": TEXT, "root": {"type": "array"}}),
        )

    def described(self) -> dict[str, Any]:
        return {"vocabulary": self._parser.vocabulary.size, "longest": MOST_PIECES, "words": _MOST_WORDS}

    def _checked(self, request: Mapping[str, Any]) -> str:
        check_filled("text", text := request["text"])
        if len(text.split()) > _MOST_WORDS:
            raise Wrong("text", f"has {len(text.split())} words, and the most is {_MOST_WORDS}; make it shorter")
        check_pieces("text", len(self._parser.vocabulary.encode_lines([" ".join(text.split())])[0]))
        return text

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        (tree,) = self._parser.parse([self._checked(request)])
        if tree is None:
            raise UserError("the model's numbers are not finite; choose another checkpoint")
        return {"text": request["text"], "tree": str(tree), "root": nested(tree)}

    def attended(self, request: dict[str, Any]) -> Attended:
        return of_parse(self._parser, self._checked(request))


def nested(tree: Tree) -> list[Any]:
    """A tree as lists: [label, child, ...] of a constituent, [tag, word] of a word."""
    made: list[list[Any]] = []
    for node, _, _ in tree.spans():
        if node.word is not None:
            made.append([node.label, spoken([node.word])[0]])
        else:
            count = len(node.children)
            made[len(made) - count :] = [[node.label, *made[len(made) - count :]]]
    return made[0]


class Masked(_Reading):
    """A masked language model, or another encoder alone, which can't fill masks."""

    task = "masked"

    def __init__(self, embedder: Embedder, filler: Filler | None):
        self._embedder, self._filler = embedder, filler
        candidate = obj({"piece": TEXT, "probability": NUMBER})
        text = Field("string", "The text, with [MASK] in the place of each piece to be filled.", needed=True)
        super().__init__(
            "Fill the masks of a text.", {"text": text}, obj({"text": TEXT, "masks": array(array(candidate))})
        )
        if filler is None:
            del self.endpoints["predict"]

    def described(self) -> dict[str, Any]:
        longest = min(MOST_PIECES, self._embedder.longest or MOST_PIECES)
        return {"vocabulary": self._embedder.vocabulary.size, "longest": longest}

    def _checked(self, request: Mapping[str, Any]) -> str:
        check_filled("text", text := request["text"])
        count = len(with_masks(self._embedder.vocabulary, text)) + 2
        check_pieces("text", count, self._embedder.longest or math.inf)
        return text

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        text = self._checked(request)
        assert self._filler is not None
        (masks,) = self._filler.fill([text], min(5, self._filler.vocabulary.size))
        return {"text": text, "masks": [[one._asdict() for one in mask] for mask in masks]}

    def attended(self, request: dict[str, Any]) -> Attended:
        return of_encoder(self._embedder, [self._checked(request)])

    def warm_up(self) -> None:
        if self._filler is not None:
            self.predict({"text": "[MASK]"})
