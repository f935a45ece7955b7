"""The language model task: train a decoder alone on running text or documents, evaluate with perplexity."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from transformer.config import LanguageModelConfig, with_micro_batches
from transformer.data.folder import check_cache, writable_cache_dir
from transformer.data.rows import Batches
from transformer.data.running import Text, Texts, texts
from transformer.data.text_store import TextStore, encode_text
from transformer.data.vocabularies import Vocabulary
from transformer.data.vocabulary_training import vocabulary
from transformer.data.windows import rows_of
from transformer.inference.generator import Generator
from transformer.model import Params, build
from transformer.model.rounding import in_type
from transformer.tasks import text_sets
from transformer.tasks.perplexity import evaluate_workdir, lines_of, summed
from transformer.tasks.vocabulary import VOCABULARIES, files_of, inherited, size_before_training, sized
from transformer.training.objectives import causal
from transformer.training.sharding import batch_sharding, gathered, put
from transformer.training.step import cut
from transformer.training.task import with_data_of
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

JUDGED = (("dev_loss", "down"),)


class LanguageModel:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(self, config: LanguageModelConfig, pieces: Vocabulary, sides: Texts):
        config = sized(config, pieces.size)
        self.config, self.pieces, self.texts, self.judged = config, pieces, sides, JUDGED
        self.files = files_of(pieces)
        documents, model = config.data.documents != "none", build(config.model)
        self.objective = causal(model, config.train, documents=documents)
        unsmoothed = dataclasses.replace(config.train, label_smoothing=0.0)
        self._dev_loss = jax.jit(causal(model, unsmoothed, documents=documents).loss, static_argnames="mesh")

    @staticmethod
    def check(config: LanguageModelConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading text."""
        size = size_before_training(config, workdir, VOCABULARIES)
        if size is None:  # characters, which are known only once the text is read
            size = 4 * config.mesh.fsdp * config.mesh.tensor
        check_start(config, workdir, build(config.model.with_vocabulary(size)))

    @staticmethod
    def resumed(config: LanguageModelConfig, stored: LanguageModelConfig) -> LanguageModelConfig:
        """`config` for a run that resumes in a workdir whose config is `stored`."""
        return config

    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: LanguageModelConfig, workdir: str | None = None) -> LanguageModel:
        """The task. Vocabulary: the workdir's if the run resumes, else that of `train.init_from`, else a new one."""
        sides = texts(config.data)
        pieces = inherited(config, workdir, VOCABULARIES) or vocabulary(config.data, sides.train)
        return cls(config, pieces, sides)

    def cut_into(self, micro_batches: int) -> LanguageModel:
        """The same task with this number of micro-batches a batch. Text that this task has read is not read again."""
        other = self._with(with_micro_batches(self.config, micro_batches))
        read = ("_train", "_development", "_test")
        return with_data_of(self, other, read)

    def _with(self, config: LanguageModelConfig) -> LanguageModel:
        """The task of this config, with the same vocabulary and texts."""
        return LanguageModel(config, self.pieces, self.texts)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def batches(self) -> Batches:
        """The training batches. The first call splits the text into pieces."""
        return self._batches

    def prepare(self) -> None:
        """Split all text of the run into pieces, and plan the batches. Only the first call does the work."""
        self.batches()
        text_sets.warn_of_doubts((self._train, self._development, self._test))

    def content_digests(self) -> dict[str, str]:
        """sha256 of the pieces of the training and of the development text."""
        return {"sha256 of the pieces of data.text": self._train.sha256(), "sha256 of the dev text": self.dev_digest()}

    def data_digest(self) -> str:
        """Digest of the training text and its pieces: it changes if either changes."""
        return self._train.text

    def dev_digest(self) -> str:
        """sha256 of the pieces of the development text; "" without one."""
        return "" if self._development is None else self._development.sha256()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters: the text and the length of the blocks."""
        return {"dev_digest": self.dev_digest(), "scored_with": {"context": self.config.data.context}}

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test text into the workdir."""
        stores = self._development, self._test
        text_sets.write(folder, {"dev": self.texts.dev, "test": self.texts.test}, stores)

    def describe(self) -> Iterator[str]:
        """Lines for the banner: data and vocabulary."""
        store, batches = self._train, self.batches()
        documents = f"{len(store):,} documents, " if store.framed else ""
        yield (
            f"data        {store.source.name}: {documents}{store.characters:,} characters, {len(store.tokens):,} "
            f"pieces; {batches.batches_per_epoch:,} updates an epoch"
        )
        yield f"padding     {batches.padding:.1%} of positions"
        yield f"vocabulary  {self.pieces.size:,} pieces, sha256 {self.pieces.sha256[:16]}"
        if (dev := self._development) is not None:
            yield f"dev text    {dev.source.name}: {dev.characters:,} characters, {len(dev.tokens):,} pieces"

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the whole development text in blocks of `data.context`, by name: the loss (nats per piece), its
        perplexity, and bits per byte. Logs a sample."""
        if self._development is None:
            return

        def sums(batch: dict[str, np.ndarray]) -> dict[str, Array]:
            rows = jax.tree.map(lambda x: x[0], cut(batch, mesh, 1))
            return self._dev_loss(params, put(rows, batch_sharding(mesh)), None, mesh=mesh)[1]

        totals = summed(sums, self._development, self.config)
        yield "dev_loss", totals.nats_per_token
        yield "dev_perplexity", totals.perplexity
        yield "dev_bits_per_byte", totals.bits_per_byte
        self.sample(params)

    def sample(self, params: Params) -> None:
        """Generate a text from nothing, and log it."""
        model, params = in_type(self.config.model, gathered(params), self.config.decode.dtype)
        data = self.config.data
        generator = Generator(
            *(build(model.with_vocabulary(self.pieces.size)), params, self.pieces, self.config.decode),
            **{"context": data.context, "documents": data.documents != "none"},
        )
        text = generator.generate([""])[0]
        if jax.process_index() == 0:
            for line in ["  sample", *(f"  | {line}" for line in text.split("\n")), ""]:
                log.info("%s", line)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the text in the batch of update `step` (from 0)."""
        return self.batches().lines(step)

    def _store(self, text: Text | None) -> TextStore | None:
        if text is None:
            return None
        with writable_cache_dir(self.config.data) as folder:
            return encode_text(text, self.pieces, folder=folder, workers=self.config.data.workers)

    @cached_property
    def _train(self) -> TextStore:
        return self._store(self.texts.train)

    @cached_property
    def _development(self) -> TextStore | None:
        return self._store(self.texts.dev)

    @cached_property
    def _test(self) -> TextStore | None:
        return self._store(self.texts.test)

    @cached_property
    def _batches(self) -> Batches:
        t = self.config.train
        rows = rows_of(self._train, self.config.data.context, t.seed)
        return Batches(rows, batch_tokens=t.batch_tokens, accumulate=t.accumulate, seed=t.seed)
