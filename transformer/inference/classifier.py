"""Labels of texts, under a fine-tuned encoder: a class, a number, or a tag for each word."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import LABEL_HEADS, FinetuneConfig, UserError, require_workdir, shown
from transformer.data.framing import Row, frame, frame_words
from transformer.data.given import listed, strings
from transformer.data.labelled import bare, words_in
from transformer.data.labels import FILE, Labels, read
from transformer.inference.batches import Batch, Batcher, on_all_devices, padded_lengths
from transformer.inference.ensemble import check_leaves, check_members
from transformer.inference.pieces import (
    MAX_LINES,
    check_ids,
    encoder_vocabulary,
    require_encoder_vocabulary,
    warn_of_unknown,
)
from transformer.inference.tally import Tally
from transformer.model import Model, Params, build
from transformer.model.checks import check_integer
from transformer.model.rounding import in_type

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.data.wordpiece import EncoderVocabulary

log = logging.getLogger("transformer")

BATCH_TEXTS, BATCH_TOKENS = 64, 16_384

Text = str | Sequence[str]
"""A text; a pair of texts; or, for tags, words, or words separated by spaces."""


class Prediction(NamedTuple):
    """The label of a text. All are None for a blank text, and where the model's numbers are not finite."""

    label: str | float | list[str] | None
    """The likeliest class; the number; or the likeliest tag of each word."""
    probability: float | list[float | None] | None
    """The probability of the class, or of each tag. None for a number, and for words that were cut off."""
    probabilities: dict[str, float] | None = None
    """The probability of each class; None for numbers and tags."""


class Classifier:
    """Labels texts with a fine-tuned encoder. Texts of similar length are computed together.

    `tally` counts the texts so far.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        vocabulary: EncoderVocabulary,
        labels: Labels,
        *,
        longest: int | None = None,
    ) -> None:
        """`longest`: the most pieces of a text, the special ones included; None = as many as the model has learned
        positions. Raises `UserError` if the model has no head for these labels, or another size of vocabulary."""
        if not isinstance(model, Model) or model.config.head not in LABEL_HEADS:
            raise UserError(f"model = {shown(model)}: give an encoder alone with a head for labels")
        require_encoder_vocabulary(vocabulary)
        if not isinstance(labels, Labels):
            raise UserError(f"labels = {shown(labels)}: give those that the model was trained with")
        head = "token" if labels.kind == "tags" else "sequence"
        if (model.config.head, model.config.labels) != (head, labels.size):
            raise UserError(
                f"the model has the head {model.config.head!r} with {model.config.labels} outputs, but these labels "
                f"need {head!r} with {labels.size}; give those that it was trained with"
            )
        if vocabulary.size > model.config.vocab_size:
            raise UserError(
                f"the vocabulary has {vocabulary.size} pieces, and the model {model.config.vocab_size}; give the "
                "vocabulary that it was trained with"
            )
        check_members(model, params, ())
        if longest is not None:
            check_integer("longest", longest, 5)
        learned = model.config.max_positions if model.config.positions == "learned" else None
        self.model, self.params, self.vocabulary, self.labels = model, params, vocabulary, labels
        self.longest = min((n for n in (longest, learned) if n is not None), default=None)
        """The most pieces of a text, the special ones included; None = no limit."""
        self.tally = Tally()
        self._batcher = Batcher(params, batch_sentences=BATCH_TEXTS, batch_tokens=BATCH_TOKENS)

    @classmethod
    def load(cls, workdir: str | os.PathLike[str], checkpoint: str | int | None = None) -> Classifier:
        """The classifier of a workdir; of a workdir with several seeds, that of the seed with the best score.

        `checkpoint`: as in `transformer.load`. Texts are cut to `data.context` pieces. If there are several devices,
        the rows of a batch are cut over all of them.
        """
        from transformer.checkpoint import Checkpoints, best_seed

        return Checkpoints(best_seed(workdir)).read(checkpoint, cls.of)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Classifier:
        """The classifier of an open checkpoint. Raises `UserError` if it is of another task."""
        config = checkpoint.config
        require_workdir(config, checkpoint.path.parent.parent, FinetuneConfig)
        vocabulary, labels = encoder_vocabulary(checkpoint), labels_in(checkpoint)
        model, params = in_type(checkpoint.model.config, checkpoint.params(), "auto")
        return cls(build(model), on_all_devices(params), vocabulary, labels, longest=config.data.context)

    def classify(self, texts: Iterable[Text], *, first_line: int = 1) -> list[Prediction]:
        """The label of each text.

        A text is a string; of a model for pairs, two strings; of one for tags, a list of words, or words separated by
        spaces. A text that is too long loses its end, with a warning that names its line, counted from `first_line`.
        Raises `UserError` for wrong arguments.
        """
        given = [self.parts(text, i) for i, text in enumerate(self._listed(texts, first_line), first_line)]
        filled = [i for i, parts in enumerate(given) if parts]
        rows = self._rows([given[i] for i in filled])
        lines = [i + first_line for i in filled]
        self._warn(lines, rows)
        warn_of_unknown(self.vocabulary, [" ".join(given[i]) for i in filled], [row.ids for row in rows], lines)
        predictions = [Prediction(None, None)] * len(given)
        finite: list[float | None] = [None] * len(given)
        for i, found in zip(filled, self.predict(rows), strict=True):
            predictions[i], finite[i] = found, math.nan if found.label is None else 0.0
        self.tally.count(finite, first_line)
        return predictions

    def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        """The label of each row that `encode` returns. Raises `UserError` for other rows."""
        outputs = self.outputs(rows)
        return [self._prediction(output, len(row.starts) + row.cut) for output, row in zip(outputs, rows, strict=True)]

    def encode(self, texts: Iterable[Text], *, first_line: int = 1) -> list[Row]:
        """The row of each text, given as to `classify`. Raises `UserError` for wrong arguments and blank texts."""
        given = [self.parts(text, i) for i, text in enumerate(self._listed(texts, first_line), first_line)]
        for line, parts in enumerate(given, first_line):
            if not parts:
                raise UserError(f"line {line}: is blank, so there is nothing to label; leave it out")
        return self._rows(given)

    def _rows(self, given: Sequence[Sequence[str]]) -> list[Row]:
        """The row of each text: one string, a pair of strings, or words."""
        if self.labels.kind == "tags":
            return frame_words(self.vocabulary, given, self.longest)
        return frame(self.vocabulary, given, self.longest)

    def outputs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The outputs of the head for each row, float32: (labels,), or for tags (words in the row, labels).

        Raises `UserError` unless the rows are those of `encode`.
        """
        if isinstance(rows, str) or not isinstance(rows, Sequence) or not all(isinstance(row, Row) for row in rows):
            raise UserError(f"rows = {shown(rows)}: give those that `encode` returns")
        check_leaves(self.params)
        check_ids("row", [row.ids for row in rows], self.vocabulary.size)
        if other := [i for i, row in enumerate(rows) if not self._fits(row)]:
            raise UserError(f"row {other[0]} is not as `encode` of this classifier returns it")
        outputs: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        lengths = [len(row.ids) for row in rows]
        most = max(lengths, default=1)
        longest = min(next(n for n in padded_lengths() if n >= most), self.longest or most)
        for batch in self._batcher.batches(lengths, longest, few=self._batcher.few(lengths)):
            for i, output in zip(batch.indices, self._computed(batch, rows), strict=False):
                outputs[i] = output[rows[i].starts] if self.labels.kind == "tags" else output
        return outputs

    def _fits(self, row: Row) -> bool:
        """Whether `encode` may return this row, but for the values of its ids."""
        length, tags, pairs = len(row.ids), self.labels.kind == "tags", self.labels.pairs
        starts, alone = (-1, *row.starts, length), row.first == length
        return (
            all(isinstance(n, int) for n in (row.first, row.cut, *starts))
            and 0 < row.first <= length <= (self.longest or length)
            and all(a < b for a, b in pairwise(starts))
            and bool(row.starts or row.cut) >= tags
            and (alone if tags else not row.starts and pairs in (None, not alone))
        )

    def _computed(self, batch: Batch, rows: Sequence[Row]) -> np.ndarray:
        """The outputs of a batch, in parts if the whole batch does not fit into memory."""
        text_BT = np.full((batch.rows, batch.length), self.vocabulary.pad, np.int32)
        part_BT = np.zeros((batch.rows, batch.length), np.int32)
        part_BT[:, 0] = 1  # of rows that fill up the batch, one piece is seen
        for b, i in enumerate(batch.indices):
            text_BT[b, : len(rows[i].ids)], part_BT[b, : len(rows[i].ids)] = rows[i].ids, rows[i].part

        def computed(of: slice) -> np.ndarray:
            text, part = self._batcher.put(text_BT[of], part_BT[of])
            return np.asarray(_outputs(self.params, text, part, model=self.model))

        return np.concatenate(self._batcher.in_parts(computed, batch.rows))

    def _prediction(self, output: np.ndarray, words: int) -> Prediction:
        """What an output says. `words`: those of a tagged text, with those that were cut off."""
        if not np.isfinite(output).all():
            return Prediction(None, None)
        labels = self.labels
        if labels.kind == "regression":
            return Prediction(labels.mean + labels.scale * float(output[0]), None)
        probabilities = np.exp(output - output.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        if labels.kind == "classes":
            best = int(probabilities.argmax())
            all_of_them = dict(zip(labels.names, probabilities.tolist(), strict=True))
            return Prediction(labels.names[best], float(probabilities[best]), all_of_them)
        unseen = words - len(output)
        names = [labels.names[i] for i in probabilities.argmax(-1).tolist()] + [labels.usual] * unseen
        return Prediction(names, [*probabilities.max(-1).tolist(), *[None] * unseen])

    def _listed(self, texts: Iterable[Text], first_line: int) -> list[Text]:
        texts = listed("texts", texts)
        check_integer("first_line", first_line, 1, MAX_LINES - len(texts))
        return texts

    def parts(self, text: Text, line: int) -> list[str]:
        """The strings of a text: one, two of a pair, or words. None of a blank text. `line`: its number, for errors."""
        kind, pairs = self.labels.kind, self.labels.pairs
        parts = text
        if isinstance(text, str):
            parts = words_in(text) if kind == "tags" else [text]
        if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
            what = "words" if kind == "tags" else "a string, or two for a pair"
            raise UserError(f"line {line}: {shown(text)}: give {what}")
        if not any(part.strip() for part in parts):
            return []
        if kind == "tags" and not all(parts := [bare(word) for word in parts]):
            raise UserError(f"line {line}: word {parts.index('')} of the list is empty; leave it out")
        allowed = {True: (2,), False: (1,), None: (1, 2)}[pairs]
        if kind != "tags" and len(parts) not in allowed:
            wanted = " or ".join({1: "one", 2: "two, a pair"}[count] for count in allowed)
            given = "1 text" if len(parts) == 1 else f"{len(parts)} texts"
            raise UserError(f"line {line}: has {given}, but this model was trained on {wanted}")
        return strings("texts", parts)

    def _warn(self, lines: Sequence[int], rows: Sequence[Row]) -> None:
        """Log a warning if texts were cut."""
        cut = [i for i, row in enumerate(rows) if row.cut]
        if cut:
            first = rows[cut[0]]
            whole = f"{len(first.starts) + first.cut} words" if first.starts else f"{len(first.ids) + first.cut} pieces"
            log.warning(
                "line %d: %s, cut to %d pieces (%d of %d lines are cut)",
                *(lines[cut[0]], whole, len(first.ids), len(cut), len(rows)),
            )


def labels_in(checkpoint: Checkpoint) -> Labels:
    """The labels of a checkpoint of a fine-tuned encoder."""
    return read(checkpoint.file(FILE), str(checkpoint.path / FILE))


@partial(jax.jit, static_argnames="model")
def _outputs(params: Params, text_BT: Array, part_BT: Array, *, model: Model) -> Array:
    """The outputs of the head. `part_BT`: 1 and 2 in the first and second text, 0 = padding."""
    types_BT = (part_BT == 2).astype(jnp.int32) if model.config.token_types else None
    return model.bind(params)(text_BT, types_BT=types_BT, mask_BT=part_BT != 0)
