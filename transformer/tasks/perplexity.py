"""Perplexity of a text under a language model, in blocks and with a sliding window."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer.checkpoint import AVERAGE, Checkpoint, Checkpoints, again
from transformer.config import CONTINUING, LanguageModelConfig, UserError, require_task
from transformer.data.running import Text, given_text
from transformer.data.text_store import TextStore, encode_text
from transformer.data.vocabularies import Vocabulary
from transformer.data.windows import evaluation_batches
from transformer.model import build
from transformer.model.checks import check_integer
from transformer.streams import plain
from transformer.tasks import text_sets
from transformer.tasks.vocabulary import VOCABULARIES, vocabulary_in
from transformer.training.objectives import causal

log = logging.getLogger("transformer")

SCORES = ("nats_per_token", "nats_per_byte", "bits_per_byte", "perplexity")


Sums = Callable[[dict[str, np.ndarray]], Mapping[str, Any]]
"""A batch -> its "nll", in nats, and "weight", the number of predicted pieces."""


class Totals(NamedTuple):
    """Sums over all predicted pieces of a text."""

    nats: float
    pieces: int
    bytes: int
    """Number of bytes of their text, separators of documents left out."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.pieces

    @property
    def nats_per_byte(self) -> float:
        return self.nats / max(self.bytes, 1)

    @property
    def bits_per_byte(self) -> float:
        return self.nats_per_byte / math.log(2)

    @property
    def perplexity(self) -> float:
        """Perplexity per piece: exp of `nats_per_token`."""
        return math.exp(min(self.nats_per_token, 700.0))


def summed(sums: Sums, store: TextStore, config: LanguageModelConfig, stride: int | None = None) -> Totals:
    """The totals of a text, in batches of the size of a micro-batch. `stride` as in `evaluation_batches`."""
    context, batch_tokens = config.data.context, config.train.batch_tokens // config.train.accumulate
    nats, pieces = 0.0, 0
    for batch in evaluation_batches(store, context=context, batch_tokens=batch_tokens, stride=stride):
        result = sums(batch)
        nats, pieces = nats + float(result["nll"]), pieces + int(result["weight"])
    first = 0 if store.framed else store.vocabulary.byte_lengths[store.tokens[0]]  # of a running text: not predicted
    return Totals(nats, pieces, store.bytes - int(first))


def _loaded(workdir: str, checkpoint: str | None) -> tuple[Checkpoint, Vocabulary, Sums]:
    """A checkpoint of a language model, its vocabulary, and its loss, in the type of training: `decode.dtype` is for
    generation."""
    opened = Checkpoints(workdir).open(checkpoint)
    config = opened.config
    require_task(config, workdir, *CONTINUING)
    pieces = vocabulary_in(opened, VOCABULARIES)
    model, params = build(config.model.with_vocabulary(pieces.size)), opened.params()
    loss = jax.jit(causal(model, config.train, documents=config.data.documents != "none").loss)
    return opened, pieces, lambda batch: loss(params, batch, None)[1]


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A temporary folder for a block that writes to it. Raises `UserError` if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield folder
        except OSError as error:
            where, why = error.filename or folder, error.strerror or error
            raise UserError(f"{where}: {why}; make room there, or set TMPDIR to another folder") from error


def evaluate_workdir(
    workdir: str,
    *,
    text: str | None = None,
    stride: int | None = None,
    checkpoint: str | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """The scores of a workdir's checkpoint on a text, as evaluate.py prints them.

    `text`: a file; default: the workdir's text of this kind, 'test' or 'dev', else its test text, else its development
    text. The text is cut into blocks of
    `data.context` pieces. `sliding_perplexity` is that of blocks that overlap: each begins `stride` pieces after the
    one before it (default: half of the context), so that nearly every piece is predicted from at least
    `data.context - stride` others. Raises `UserError` if the workdir or the file can't be used.
    """
    opened, pieces, sums = again(lambda: _loaded(workdir, checkpoint))
    data, context = opened.config.data, opened.config.data.context
    if stride is not None:
        check_integer("--stride", stride, 1, context)
    stride = max(1, context // 2) if stride is None else stride
    with _scratch() as folder:
        if text is None:
            name, source = text_sets.read(workdir, Path(folder), kind)
        else:
            path = given_text(text)
            name, source = Path(path).name, Text((path,), data.documents)
        store = encode_text(source, pieces, folder=folder, workers=data.workers)
        if doubt := store.doubt():
            log.warning("%s", doubt)
        log.info("scoring %s pieces of %s with checkpoint %s of %s", len(store.tokens), name, opened.name, workdir)
        blocks = summed(sums, store, opened.config)
        if not math.isfinite(blocks.nats):
            raise UserError(f"{workdir}: the loss of checkpoint {opened.name} is not finite; choose another checkpoint")
        sliding = summed(sums, store, opened.config, stride)
    result = {
        "test_set": name,
        "checkpoint": str(opened.name),
        "tokens": blocks.pieces,
        "bytes": blocks.bytes,
        **{
            score: getattr(blocks, score)
            for score in ("nats_per_token", "nats_per_byte", "bits_per_byte", "perplexity")
        },
        "context": context,
        "stride": stride,
        "sliding_nats_per_token": sliding.nats_per_token,
        "sliding_perplexity": sliding.perplexity,
    }
    if opened.name == AVERAGE:
        result["averaged_steps"] = opened.progress["averaged_steps"]
    return result


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text."""
    name, tokens, size = plain(result["test_set"]), result["tokens"], result["bytes"]
    yield f"{name}: {tokens:,} pieces, {size:,} bytes, checkpoint {result['checkpoint']}"
    yield (
        f"perplexity {result['perplexity']:.3f}   {result['nats_per_token']:.4f} nats a piece, "
        f"{result['bits_per_byte']:.4f} bits a byte; blocks of {result['context']} pieces"
    )
    yield (
        f"perplexity {result['sliding_perplexity']:.3f}   {result['sliding_nats_per_token']:.4f} nats a piece; sliding "
        f"window, {result['stride']} pieces further each time"
    )
