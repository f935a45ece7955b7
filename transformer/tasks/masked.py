"""The task of a masked language model: train an encoder alone on masked pieces and on pairs of texts, as BERT."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from transformer.config import MaskedConfig, with_micro_batches
from transformer.data.folder import check_cache, writable_cache_dir
from transformer.data.masking import MaskedRows, in_order
from transformer.data.rows import Batches
from transformer.data.running import Text, Texts, pretraining_texts
from transformer.data.text_store import TextStore, encode_text
from transformer.data.vocabulary_training import encoder_vocabulary
from transformer.data.wordpiece import EncoderVocabulary
from transformer.inference.filler import likeliest
from transformer.model import Params, build
from transformer.model.rounding import in_type
from transformer.tasks import text_sets
from transformer.tasks.masked_scores import SEED, Totals, evaluate_workdir, lines_of, rows_per_batch, summed, sums_of
from transformer.tasks.vocabulary import (
    ENCODER_VOCABULARIES,
    files_of,
    inherited,
    size_before_training,
    sized,
)
from transformer.training.objectives import masked
from transformer.training.sharding import batch_sharding, gathered, put
from transformer.training.step import cut
from transformer.training.task import with_data_of
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

JUDGED = (("dev_loss", "down"),)
# Fields of the data section that dev scores depend on.
_SCORED_WITH = ("context", "next_sentence", "short_share", "mask_share", "max_masked", "whole_words")


class Masked:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(self, config: MaskedConfig, pieces: EncoderVocabulary, sides: Texts, unpaired: Text | None):
        config = sized(config, pieces.size)
        self.config, self.pieces, self.texts, self.unpaired, self.judged = config, pieces, sides, unpaired, JUDGED
        self.files = files_of(pieces)
        self.objective = masked(build(config.model), config.train, next_sentence=config.data.next_sentence)
        self._sums = jax.jit(sums_of(self.objective.model))

    @staticmethod
    def check(config: MaskedConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading text."""
        config.check_training()
        size = size_before_training(config, workdir, ENCODER_VOCABULARIES)
        check_start(config, workdir, build(config.model.with_vocabulary(size)))

    @staticmethod
    def resumed(config: MaskedConfig, stored: MaskedConfig) -> MaskedConfig:
        """`config` for a run that resumes in a workdir whose config is `stored`."""
        return config

    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: MaskedConfig, workdir: str | None = None) -> Masked:
        """The task. Vocabulary: the workdir's if the run resumes, else that of `train.init_from`, else a new one."""
        sides, unpaired = pretraining_texts(config.data)
        pieces = inherited(config, workdir, ENCODER_VOCABULARIES)
        if pieces is None:
            pieces = encoder_vocabulary(config.data, [sides.train, *([unpaired] if unpaired else [])])
        return cls(config, pieces, sides, unpaired)

    def cut_into(self, micro_batches: int) -> Masked:
        """The same task with this number of micro-batches a batch. Text that this task has read is not read again."""
        other = Masked(with_micro_batches(self.config, micro_batches), self.pieces, self.texts, self.unpaired)
        read = ("_stores", "_rows", "_development")
        return with_data_of(self, other, read)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def batches(self) -> Batches:
        """The training batches. The first call splits the text into pieces and draws the pairs."""
        return self._batches

    def prepare(self) -> None:
        """Split all text of the run into pieces, and plan the batches. Only the first call does the work."""
        self.batches()
        dev = [] if self._development is None else self._development.stores
        text_sets.warn_of_doubts((*self._stores, *dev))

    def content_digests(self) -> dict[str, str]:
        """sha256 of the pieces of the training and of the development text."""
        digests = [store.sha256() for store in self._stores]
        return {"sha256 of the pieces of data.text": " ".join(digests), "sha256 of the dev text": self.dev_digest()}

    def data_digest(self) -> str:
        """Digest of the training text and its pieces: it changes if either changes."""
        return " ".join(store.text for store in self._stores)

    def dev_digest(self) -> str:
        """sha256 of the pieces of the development text; "" without one."""
        return "" if self._development is None else self._development.stores[0].sha256()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters: the text and how it is masked."""
        data = self.config.data
        return {"dev_digest": self.dev_digest(), "scored_with": {name: getattr(data, name) for name in _SCORED_WITH}}

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test text into the workdir."""
        stores = [] if self._development is None else self._development.stores
        text_sets.write(folder, {"dev": self.texts.dev, "test": self.texts.test}, stores)

    def describe(self) -> Iterator[str]:
        """Lines for the banner: data and vocabulary."""
        batches = self.batches()
        for store in self._stores:
            documents = "unpaired" if store is not self._stores[0] else f"{len(store):,} documents"
            yield (
                f"data        {store.source.name}: {documents}, {store.characters:,} characters, {len(store.tokens):,} "
                "pieces"
            )
        yield f"rows        {self._rows.count:,}, {batches.batches_per_epoch:,} updates an epoch"
        yield f"padding     {batches.padding:.1%} of positions"
        yield f"vocabulary  {self.pieces.size:,} pieces, sha256 {self.pieces.sha256[:16]}"
        if (rows := self._development) is not None:
            dev = rows.stores[0]
            counts = f"{len(dev):,} documents, {len(dev.tokens):,} pieces, {rows.count:,} rows"
            yield f"dev text    {dev.source.name}: {counts}"

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the whole development text, by name: the loss, that of masked pieces, and the shares of masked
        pieces and of pairs that are predicted right. Pairs and masks are always the same. Logs a sample."""
        if self._development is None:
            return

        def sums(batch: dict[str, np.ndarray]) -> Totals:
            rows = jax.tree.map(lambda x: x[0], cut(batch, mesh, 1))
            return self._sums(params, put(rows, batch_sharding(mesh)))

        totals = summed(sums, in_order(self._development, rows_per_batch(self.config)))
        yield "dev_loss", totals.loss
        yield "dev_masked_loss", totals.masked_loss
        yield "dev_masked_accuracy", totals.masked_accuracy
        if (accuracy := totals.next_accuracy) is not None:
            yield "dev_next_accuracy", accuracy
        self.sample(params)

    def sample(self, params: Params) -> None:
        """Log the first row of the development text with the likeliest piece at each masked place."""
        rows = self._development or self._rows
        batch = rows.batch([0], 0, 1)
        config, params = in_type(self.config.model, gathered(params), "auto")
        text, place = batch["text"][0], batch["place"][0]
        ids, probabilities = likeliest(
            *(params, batch["text"], batch["part"] > 0, batch["place"]),
            model=build(config.with_vocabulary(self.pieces.size)),
            top=1,
        )
        names = [self.pieces.name(int(i)) for i in text[: int((batch["part"][0] > 0).sum())]]
        for t, label, i, p in zip(place, batch["label"][0], ids[0, :, 0], probabilities[0, :, 0], strict=True):
            if t:
                names[t] = f"[{self.pieces.name(int(label))}: {self.pieces.name(int(i))} {float(p):.0%}]"
        if jax.process_index() == 0:
            log.info("  sample  %s\n", " ".join(names))

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the text in the batch of update `step` (from 0)."""
        return self.batches().lines(step)

    def _store(self, text: Text) -> TextStore:
        with writable_cache_dir(self.config.data) as folder:
            return encode_text(text, self.pieces, folder=folder, workers=1)

    @cached_property
    def _stores(self) -> list[TextStore]:
        """The training text with documents, and that without, if any."""
        return [self._store(text) for text in (self.texts.train, self.unpaired) if text is not None]

    @cached_property
    def _rows(self) -> MaskedRows:
        data, seed = self.config.data, self.config.train.seed
        with writable_cache_dir(data) as folder:
            return MaskedRows(data, self._stores, seed=seed, folder=folder, duplicates=data.duplicates)

    @cached_property
    def _development(self) -> MaskedRows | None:
        if self.texts.dev is None:
            return None
        return MaskedRows(self.config.data, [self._store(self.texts.dev)], seed=SEED)

    @cached_property
    def _batches(self) -> Batches:
        t = self.config.train
        return Batches(self._rows, batch_tokens=t.batch_tokens, accumulate=t.accumulate, seed=t.seed)
