"""All attention of one pass: the pieces of a text and of what the model writes, and who takes in how much of whom.

Shapes: B = 1 text, L layers, N heads, T queries, S keys, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import (
    BOS,
    EOS,
    PAD,
    ByteLatentModel,
    Config,
    FinetuneConfig,
    LanguageModelConfig,
    ParsingConfig,
    UserError,
    shown,
)
from transformer.data.framing import Row, row_of
from transformer.data.given import require_string, strings
from transformer.data.treebank import frame_sentences
from transformer.data.trees import escaped, spoken
from transformer.inference.batches import FEW_LENGTHS
from transformer.inference.filler import with_masks
from transformer.model import Model, Params

if TYPE_CHECKING:
    from transformer.data.wordpiece import EncoderVocabulary
    from transformer.inference.classifier import Classifier, Text
    from transformer.inference.embedder import Embedder
    from transformer.inference.generator import Generator
    from transformer.inference.parser import Parser
    from transformer.inference.translator import Translator

log = logging.getLogger("transformer")

MOST = FEW_LENGTHS[-1]
"""The most pieces of a text, those at its ends included."""
FORMAT, VERSION = "transformer attention", 1
KINDS = ("encoder", "decoder", "cross")
_DECIMALS = 5


class Side(NamedTuple):
    """The pieces along an axis of the weights."""

    pieces: tuple[str, ...]
    text: str | None = None
    """The text that they spell, if it is one."""
    log_probs: tuple[float | None, ...] | None = None
    """The log-probability (nats) of each piece given those before it, and the source; None where there is none."""
    parts: tuple[int, ...] | None = None
    """Of a pair of texts: 1 at pieces of the first one, 2 at those of the second."""

    def json(self) -> dict[str, Any]:
        """The fields that there are. Log-probabilities are rounded to 5 decimals."""
        fields = {name: value for name, value in self._asdict().items() if value is not None}
        if self.log_probs is not None:
            fields["log_probs"] = [None if each is None else round(each, _DECIMALS) for each in self.log_probs]
        return fields


class Attention(NamedTuple):
    """The weights of one kind of attention."""

    queries: str
    """The name of the side whose pieces take something in: the rows, T."""
    keys: str
    """The name of the side that they take it from: the columns, S."""
    weights_LNTS: np.ndarray
    """float32; each row sums to 1."""


@dataclass(frozen=True)
class Attended:
    """All attention of one pass."""

    task: str
    sides: Mapping[str, Side]
    attention: Mapping[str, Attention]
    """By kind, in the order of `KINDS`."""

    def json(self) -> dict[str, Any]:
        """The fields of docs/attention.md, as JSON has them. Weights are rounded to 5 decimals."""
        kinds = {}
        for kind, (queries, keys, weights_LNTS) in self.attention.items():
            L, N = weights_LNTS.shape[:2]
            rounded = np.round(weights_LNTS.astype(np.float64), _DECIMALS).tolist()
            kinds[kind] = {"queries": queries, "keys": keys, "layers": L, "heads": N, "weights": rounded}
        return self.head() | {"attention": kinds}

    def head(self) -> dict[str, Any]:
        """`json` without the attention."""
        sides = {name: side.json() for name, side in self.sides.items()}
        return {"format": FORMAT, "version": VERSION, "task": self.task, "sides": sides}

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(one.weights_LNTS.size for one in self.attention.values())


# ---- One function for each kind of model -----------------------------------------------------------------------------


def of_translation(translator: Translator, sentence: str, translation: str | None = None) -> Attended:
    """The attention of a sentence and its translation, by default the best that the search finds.

    The sides are 'source'; 'target', the pieces that the model writes, with their log-probabilities; and 'read', what
    it has read last when it writes each of them. Of an ensemble, the first model is used. Raises `UserError` for an
    empty or too long text.
    """
    _require(translator, "tokenizer", "a transformer.Translator")
    tokenizer, table = translator.tokenizer, _positions(translator.model)
    (source,) = tokenizer.encode([_filled(sentence)])
    _check_length("the text", len(source) + 1, table)
    if translation is None:
        if len(source) > (most := translator.config.max_source_length):
            raise UserError(
                f"the text has {len(source)} pieces, and decode.max_source_length = {most} is the most that is "
                "translated; make it shorter, raise that, or give its translation with --target"
            )
        hypotheses = translator.translate_n_best([sentence])[0]
        if not hypotheses:
            raise UserError("the model finds no translation of this text; give one with --target")
        if not math.isfinite(hypotheses[0].score):
            raise UserError(
                "the model finds no translation of this text: its numbers are not finite; choose another checkpoint"
            )
        translation, _, target = hypotheses[0]
    else:
        if unknown := tokenizer.unknown([sentence], 1):
            log.warning(unknown)
        (target,) = tokenizer.encode([_filled(translation, "the target")], "target")
    _check_length("the target", len(target) + 1, table)
    names = [tokenizer.piece(id) for id in (*source, EOS)], [tokenizer.piece(id) for id in (BOS, *target, EOS)]
    texts = sentence, translation
    return _of_pair(Config.task, translator.model, translator.params, [*source, EOS], target, names, texts)


def of_parse(parser: Parser, sentence: str) -> Attended:
    """The attention of a sentence and the symbols of its tree: what opens a constituent, a word, what closes one.

    The sides are those of `of_translation`. The log-probabilities are those of the model without the constraints of the
    search. Raises `UserError` for an empty or too long sentence.
    """
    _require(parser, "symbols", "a transformer.Parser")
    words = [escaped(word) for word in _filled(sentence).split()]
    (row,), symbols = frame_sentences(parser.vocabulary, [words], None), parser.symbols
    table = _positions(parser.model)
    _check_length("the text", len(row.ids), min(table, parser.longest or math.inf))
    (tree,) = parser.parse([words])
    target = None if tree is None else symbols.encode(tree)
    if target is None:
        raise UserError("the model finds no tree of this text: its numbers are not finite; choose another checkpoint")
    _check_length("the tree", len(target) + 1, table)
    waiting = iter(spoken(words))

    def name(symbol: int) -> str:
        if symbol in symbols.opening:
            return f"({symbols.labels[symbol - symbols.opening.start]}"
        if symbol in symbols.closing:
            return ")" + (symbols.labels[symbol - symbols.closing.start] if symbols.form == "brackets" else "")
        return next(waiting)

    names = parser.vocabulary.pieces(row.ids), ["<s>", *map(name, target), "</s>"]
    texts, begins, passed = (sentence, str(tree)), None, None
    if parser.model.config.hard_attention:
        begins, passed = row.starts, np.cumsum([0, *(id == symbols.shift for id in target)])
    options = (ParsingConfig.task, parser.model, parser.params, row.ids, target, names, texts)
    return _of_pair(*options, begins, passed)


def of_text(generator: Generator, text: str) -> Attended:
    """The attention of a language model that reads a text. The side is 'text'. Of an ensemble, the first model is used.

    Raises `UserError` for an empty or too long text, and for a model of bytes in patches.
    """
    _require(generator, "documents", "a transformer.Generator")
    if isinstance(generator.model.config, ByteLatentModel):
        raise UserError("this model reads bytes in patches, of which there is no picture of attention")
    vocabulary = generator.vocabulary
    ids = vocabulary.encode(_filled(text, blank=False)).tolist()
    ids = [vocabulary.begin, *ids] if generator.documents else ids
    _check_length("the text", len(ids), generator.context or math.inf)
    length = _padded(len(ids), _positions(generator.model))
    weights, log_probs = _of_text(generator.params, _row(ids, length), model=generator.model)
    known = np.asarray(log_probs)[0, : len(ids) - 1].astype(float).tolist()
    side = Side(tuple(vocabulary.pieces(ids)), text, (None, *known))
    return _attended(LanguageModelConfig.task, {"text": side}, weights, {"decoder": ("text", "text")})


def of_labelled(classifier: Classifier, text: Text) -> Attended:
    """The attention of a text, a pair of texts or words under a fine-tuned encoder, as `Classifier.classify` takes
    them. The side is 'text'. Raises `UserError` for an empty or too long text."""
    _require(classifier, "labels", "a transformer.Classifier")
    parts = classifier.parts(text, 1)
    if not parts:
        raise UserError(_EMPTY.format("the text"))
    (row,) = classifier.encode([parts])
    if row.cut:
        raise UserError(
            f"the text has more than the {classifier.longest} pieces that this model reads at once; make it shorter"
        )
    words = classifier.labels.kind == "tags"
    whole = " ".join(parts) if words else "\t".join(parts)
    return _of_row(FinetuneConfig.task, classifier.model, classifier.params, classifier.vocabulary, row, whole)


def of_encoder(embedder: Embedder, texts: Sequence[str]) -> Attended:
    """The attention of a text, or a pair of texts, under an encoder alone. "[MASK]" in a text stands for a masked
    piece. The side is 'text'. Raises `UserError` for an empty or too long text, and for a pair if the model has no
    token types."""
    _require(embedder, "embed", "a transformer.Embedder")
    vocabulary, model = embedder.vocabulary, embedder.model
    texts = [_filled(text) for text in strings("texts", texts)]
    pieces = [with_masks(vocabulary, text) for text in texts]
    if not pieces:
        raise UserError(_EMPTY.format("the text"))
    if len(pieces) > 2 or (len(pieces) == 2 and model.config.token_types < 2):
        most = "two texts, a pair" if model.config.token_types > 1 else "one text"
        raise UserError(f"{len(pieces)} texts, separated by tabs: this model reads {most} at once")
    row = row_of(vocabulary, pieces, None)
    _check_length("the text", len(row.ids), embedder.longest or math.inf)
    return _of_row("masked", model, embedder.params, vocabulary, row, "\t".join(texts))


# ---- Passes ----------------------------------------------------------------------------------------------------------


def _of_pair(
    task: str,
    model: Model,
    params: Params,
    source: Sequence[int],
    target: Sequence[int],
    names: tuple[Sequence[str], Sequence[str]],
    texts: tuple[str, str],
    begins: Sequence[int] | None = None,
    passed: Sequence[int] | None = None,
) -> Attended:
    """`source`: ids with the end. `target`: ids without it. `names`: of the source's pieces, and of bos, target and
    eos. With `model.hard_attention`, `begins`: the places where words begin, and `passed`: the number of words that
    the target has passed at each position."""
    table = _positions(model)
    source_1S = _row(source, _padded(len(source), table))
    T = _padded(len(target) + 1, table)
    words = None
    if begins is not None:
        words = np.isin(np.arange(source_1S.shape[1])[None], begins), _row(passed, T)
    rows = (source_1S, _row([BOS, *target], T), _row([*target, EOS], T))
    weights, log_probs = _forced(params, *rows, words, model=model)
    found = np.asarray(log_probs)[0, : len(target) + 1].astype(float).tolist()
    sides = {
        "source": Side(tuple(names[0]), texts[0]),
        "target": Side(tuple(names[1][1:]), texts[1], tuple(found)),
        "read": Side(tuple(names[1][:-1])),
    }
    axes = {"encoder": ("source", "source"), "decoder": ("target", "read"), "cross": ("target", "source")}
    return _attended(task, sides, weights, axes)


def _of_row(task: str, model: Model, params: Params, vocabulary: EncoderVocabulary, row: Row, text: str) -> Attended:
    """The attention of a row of an encoder alone."""
    _check_length("the text", len(row.ids), math.inf)
    length = _padded(len(row.ids), _positions(model))
    weights = _of_encoder(params, _row(row.ids, length), _row(row.part, length), model=model)
    side = Side(tuple(vocabulary.pieces(row.ids)), text, None, tuple(row.part) if 2 in row.part else None)
    return _attended(task, {"text": side}, weights, {"encoder": ("text", "text")})


def _attended(
    task: str, sides: dict[str, Side], weights: Mapping[str, Array], axes: Mapping[str, tuple[str, str]]
) -> Attended:
    """Cut off the padding. Raises `UserError` for numbers that are not finite."""
    found = {}
    for kind in KINDS:
        if kind in weights:
            queries, keys = axes[kind]
            T, S = len(sides[queries].pieces), len(sides[keys].pieces)
            found[kind] = Attention(queries, keys, np.asarray(weights[kind][0, :, :, :T, :S]))
            if not np.isfinite(found[kind].weights_LNTS).all():
                raise UserError(
                    "the weights are not finite: the parameters of this model are broken; choose another checkpoint"
                )
    return Attended(task, sides, found)


@partial(jax.jit, static_argnames="model")
def _forced(
    params: Params, source_BS: Array, before_BT: Array, target_BT: Array, words: Any, *, model: Model
) -> tuple[dict[str, Array], Array]:
    """All weights, and the log-probability of each piece of the target. `words`: see `EncoderDecoder.__call__`."""
    logits_BTV, weights = model.bind(params).attention(source_BS, before_BT, words=words)
    return weights, _taken(logits_BTV, target_BT)


@partial(jax.jit, static_argnames="model")
def _of_text(params: Params, text_BT: Array, *, model: Model) -> tuple[dict[str, Array], Array]:
    """All weights, and the log-probability of each piece but the first."""
    logits_BTV, weights = model.bind(params).attention(text_BT)
    return weights, _taken(logits_BTV[:, :-1], text_BT[:, 1:])


@partial(jax.jit, static_argnames="model")
def _of_encoder(params: Params, text_BT: Array, part_BT: Array, *, model: Model) -> dict[str, Array]:
    """All weights. `part_BT`: 1 and 2 in the first and second text, 0 = padding."""
    types_BT = (part_BT == 2).astype(jnp.int32) if model.config.token_types else None
    return model.bind(params).attention(text_BT, types_BT=types_BT, mask_BT=part_BT != 0)[1]


def _taken(logits_BTV: Array, ids_BT: Array) -> Array:
    """The log-probability of each id."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), ids_BT[..., None], axis=2)[..., 0]


# ---- Lengths ---------------------------------------------------------------------------------------------------------

_EMPTY = "{} is empty; give some words"


def _require(given: Any, has: str, what: str) -> None:
    """Raise `UserError` unless the object has this attribute, by which its kind is known without importing it."""
    if not hasattr(given, has):
        raise UserError(f"{shown(given)}: give {what}")


def _filled(text: str, what: str = "the text", *, blank: bool = True) -> str:
    """The text. Raises `UserError` if it is no string or empty; with `blank`, also if it is only white space."""
    require_string(what, text)
    (text,) = strings(what, [text])
    if not (text.strip() if blank else text):
        raise UserError(_EMPTY.format(what))
    return text


def _positions(model: Model) -> float:
    """The number of positions that the model has; inf if they are computed."""
    return model.config.max_positions if model.config.positions == "learned" else math.inf


def _check_length(what: str, length: int, most: float) -> None:
    """Raise `UserError` if a side has more than `most` pieces, as the model allows, or more than `MOST`."""
    if length > most:
        raise UserError(f"{what} has {length} pieces, and this model reads at most {int(most)}; make it shorter")
    if length > MOST:
        raise UserError(f"{what} has {length} pieces, and a picture of attention at most {MOST}; make it shorter")


def _padded(length: int, most: float) -> int:
    """The length that a row is padded to, so that few programs are compiled."""
    return int(min(next(n for n in FEW_LENGTHS if n >= length), most))


def _row(ids: Sequence[int], length: int) -> np.ndarray:
    """The ids as one row of this length, padded on the right."""
    row = np.full((1, length), PAD, np.int32)
    row[0, : len(ids)] = ids
    return row
