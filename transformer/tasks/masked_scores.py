"""Scores of a masked language model on a text: loss, accuracy of masked pieces, accuracy of the next sentence."""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.checkpoint import AVERAGE, Checkpoint, Checkpoints, again
from transformer.config import MaskedConfig, UserError
from transformer.data.masking import MaskedRows, in_order
from transformer.data.rows import Batch
from transformer.data.running import Text, given_text
from transformer.data.sentence_pairs import holds_one_document
from transformer.data.text_store import encode_text
from transformer.data.wordpiece import EncoderVocabulary
from transformer.inference.filler import require_masked_head
from transformer.inference.pieces import encoder_vocabulary
from transformer.model import Model, Params, build
from transformer.model.rounding import in_type
from transformer.streams import plain
from transformer.tasks import text_sets
from transformer.training.objectives import masked_states, next_sentence_nll

log = logging.getLogger("transformer")

SEED = 0
"""Seed of the pairs and masks of a text that is scored."""


class Totals(NamedTuple):
    """Sums over a text."""

    nats: float = 0.0
    """Negative log-likelihood of the masked pieces."""
    pieces: float = 0
    """Number of masked pieces."""
    right: float = 0
    """Number of masked pieces that are the likeliest one."""
    next_nats: float = 0.0
    """The same three of the pairs of texts."""
    pairs: float = 0
    next_right: float = 0

    @property
    def masked_loss(self) -> float:
        """Nats per masked piece."""
        return self.nats / self.pieces

    @property
    def next_loss(self) -> float:
        """Nats per pair; 0 without pairs."""
        return self.next_nats / max(self.pairs, 1)

    @property
    def loss(self) -> float:
        """The loss of training, without smoothing."""
        return self.masked_loss + self.next_loss

    @property
    def masked_accuracy(self) -> float:
        return self.right / self.pieces

    @property
    def next_accuracy(self) -> float | None:
        return self.next_right / self.pairs if self.pairs else None


Sums = Callable[[Batch], Totals]


def sums_of(model: Model) -> Callable[[Params, Mapping[str, Array]], Totals]:
    """A function (params, batch) -> the sums of a batch of `data.masking`, to be compiled."""

    def sums(params: Params, batch: Mapping[str, Array]) -> Totals:
        module = model.bind(params)
        x_BTD, x_BXD = masked_states(module, batch)

        def at_place(one: tuple[Array, Array]) -> tuple[Array, Array]:
            """For the masked piece x of each row: its negative log-likelihood, and whether it is the likeliest."""
            x_BD, label_B = one
            logits_BV = module.masked_logits(x_BD[:, None])[:, 0]
            nll_B = jax.nn.logsumexp(logits_BV, axis=1) - jnp.take_along_axis(logits_BV, label_B[:, None], axis=1)[:, 0]
            return nll_B, jnp.argmax(logits_BV, axis=1) == label_B

        # One place at a time: the logits of all places could be larger than all else.
        nll_XB, right_XB = jax.lax.map(at_place, (x_BXD.swapaxes(0, 1), batch["label"].T))
        counts_XB = batch["place"].T != 0
        totals = Totals(jnp.where(counts_XB, nll_XB, 0).sum(), counts_XB.sum(), (counts_XB & right_XB).sum())
        if "next" not in batch:
            return totals
        nll_B, pair_B = next_sentence_nll(module, x_BTD, batch["next"])
        right_B = pair_B & (jnp.argmax(module.next_sentence_logits(x_BTD), axis=1) == batch["next"][:, 0] - 1)
        return totals._replace(next_nats=nll_B.sum(), pairs=pair_B.sum(), next_right=right_B.sum())

    return sums


def summed(sums: Sums, batches: Iterable[Batch]) -> Totals:
    """The totals of all batches. Raises `UserError` if they have no masked piece."""
    totals = np.zeros(len(Totals._fields))
    for batch in batches:
        totals += [float(x) for x in sums(batch)]
    if not (all_sums := Totals(*totals.tolist())).pieces:
        raise UserError(
            "no piece of the text is masked: with data.whole_words, all its words have more pieces than a row "
            "predicts; give a longer text"
        )
    return all_sums


def rows_per_batch(config: MaskedConfig) -> int:
    """Rows of a batch of a text that is scored: those of a micro-batch."""
    return max(config.train.batch_tokens // (config.train.accumulate * config.data.context), 1)


def _loaded(workdir: str, checkpoint: str | None) -> tuple[Checkpoint, EncoderVocabulary, Sums]:
    """A checkpoint of a masked language model, its vocabulary, and its sums."""
    opened = Checkpoints(workdir).open(checkpoint)
    require_masked_head(opened.config, workdir)
    pieces = encoder_vocabulary(opened)
    model, params = in_type(opened.config.model, opened.params(), "auto")
    sums = jax.jit(sums_of(build(model.with_vocabulary(pieces.size))))
    return opened, pieces, lambda batch: sums(params, batch)


def evaluate_workdir(
    workdir: str, *, text: str | None = None, checkpoint: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    """The scores of a workdir's checkpoint on a text, as evaluate.py prints them.

    `text`: a file; default: the workdir's text of this kind, 'test' or 'dev', else its test text, else its development
    text. Pairs and masks are always drawn from
    the same seed. Raises `UserError` if the workdir or the file can't be used.
    """
    opened, pieces, sums = again(lambda: _loaded(workdir, checkpoint))
    config = opened.config
    with tempfile.TemporaryDirectory() as folder:
        if text is None:
            name, source = text_sets.read(workdir, Path(folder), kind)
        else:
            path = given_text(text)
            name, source = Path(path).name, Text((path,), "blank_lines", most_lines=config.data.document_lines)
        store = encode_text(source, pieces, folder=folder, workers=1)
        if doubt := store.doubt():
            log.warning("%s", doubt)
        log.info("scoring %s pieces of %s with checkpoint %s of %s", len(store.tokens), name, opened.name, workdir)
        data = config.data
        if data.next_sentence and holds_one_document(store):
            log.warning(
                "%s holds a single document, so only masked pieces are scored; blank lines would separate documents",
                plain(name),
            )
            data = dataclasses.replace(data, next_sentence=False)
        totals = summed(sums, in_order(MaskedRows(data, [store], seed=SEED), rows_per_batch(config)))
    if not math.isfinite(totals.loss):
        raise UserError(f"{workdir}: the loss of checkpoint {opened.name} is not finite; choose another checkpoint")
    result = {
        "test_set": name,
        "checkpoint": str(opened.name),
        "masked_pieces": int(totals.pieces),
        "pairs": int(totals.pairs),
        "loss": totals.loss,
        "masked_loss": totals.masked_loss,
        "masked_perplexity": math.exp(min(totals.masked_loss, 700.0)),
        "masked_accuracy": totals.masked_accuracy,
        "next_loss": totals.next_loss if totals.pairs else None,
        "next_accuracy": totals.next_accuracy,
    }
    if opened.name == AVERAGE:
        result["averaged_steps"] = opened.progress["averaged_steps"]
    return result


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text."""
    yield f"{plain(result['test_set'])}: checkpoint {result['checkpoint']}, loss {result['loss']:.4f}"
    yield (
        f"masked pieces  {result['masked_accuracy']:.2%} right of {result['masked_pieces']:,}, "
        f"{result['masked_loss']:.4f} nats each, perplexity {result['masked_perplexity']:.3f}"
    )
    if result["pairs"]:
        yield (
            f"next sentence  {result['next_accuracy']:.2%} right of {result['pairs']:,}, "
            f"{result['next_loss']:.4f} nats each"
        )
