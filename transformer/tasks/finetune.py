"""The task of fine-tuning: an encoder alone learns the labels of texts (Devlin et al. 2019, §4)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from transformer.config import FinetuneConfig, LabelledConfig, UserError, with_micro_batches
from transformer.data.folder import check_cache
from transformer.data.held_out import seen_doubts
from transformer.data.labelled import Columns, Example
from transformer.data.labelled_rows import LabelledBatches, LabelledRows, split
from transformer.data.labels import Labels, class_weights, learn
from transformer.data.sources import warn_of_repeated
from transformer.data.vocabulary_training import labelled_vocabulary
from transformer.data.wordpiece import EncoderVocabulary
from transformer.files import path_of
from transformer.inference.batches import on_all_devices
from transformer.inference.classifier import Classifier
from transformer.model import Params, build
from transformer.model.rounding import in_type
from transformer.streams import to_json
from transformer.tasks import labelled_sets
from transformer.tasks.label_scores import collapse, evaluate_workdir, lines_of, scores_of
from transformer.tasks.labelled_sets import ExampleSet
from transformer.tasks.tuning import (
    as_stored,
    completed,
    from_start,
    rate_of,
    redrawn_by,
    refuse_computed,
    refuse_other_labels,
    refuse_without_start,
    with_head,
)
from transformer.tasks.vocabulary import (
    ENCODER_VOCABULARIES,
    files_of,
    inherited,
    size_before_training,
    sized,
)
from transformer.training.objectives import labelled
from transformer.training.sharding import gathered
from transformer.training.task import with_data_of
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

_SAMPLES = 3


class Examples(NamedTuple):
    """The labelled texts of a run."""

    train: ExampleSet
    dev: ExampleSet | None
    test: ExampleSet | None


class Finetune:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    def __init__(self, config: FinetuneConfig, pieces: EncoderVocabulary, labels: Labels, examples: Examples):
        """`config`: as `completed` returns it."""
        config = sized(config, pieces.size)
        self.config, self.pieces, self.labels, self.examples = config, pieces, labels, examples
        self.judged = ((f"dev_{labels.metric}", labels.direction), ("dev_loss", "down"))
        self.files = {**files_of(pieces), **dict([labels.file])}
        self.objective = labelled(
            build(config.model),
            config.train,
            numbers=labels.kind == "regression",
            class_weights=class_weights(config.tune.class_weights, labels, examples.train.examples),
            rate=rate_of(config),
            redrawn=redrawn_by(config, labels),
        )

    @staticmethod
    def check(config: FinetuneConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without reading the labelled texts."""
        if not (path_of(workdir) / "config.json").exists():
            refuse_computed(config)
            refuse_without_start(config)
        config = from_start(config, workdir)
        size = size_before_training(config, workdir, ENCODER_VOCABULARIES)
        model = with_head(config, config.model.labels or 2).model
        check_start(config, workdir, build(model.with_vocabulary(size)))

    resumed = staticmethod(as_stored)
    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: FinetuneConfig, workdir: str | None = None) -> Finetune:
        """The task. Vocabulary: the workdir's if the run resumes, else that of `train.init_from`, else a new one."""
        config, examples = from_start(config, workdir), read(config)
        if jax.process_index() == 0:
            _warn_of_doubts(config.data, examples)
        labels = learn(config.data, config.tune.metric, examples.train.examples)
        refuse_other_labels(labels, workdir)
        pieces = inherited(config, workdir, ENCODER_VOCABULARIES)
        if pieces is None:
            texts = [part for example in examples.train.examples for part in _texts(example)]
            pieces = labelled_vocabulary(config.data, texts)
        return cls(completed(config, labels, len(examples.train.examples)), pieces, labels, examples)

    def cut_into(self, micro_batches: int) -> Finetune:
        """The same task with this number of micro-batches a batch. Text that this task has read is not read again."""
        other = Finetune(with_micro_batches(self.config, micro_batches), self.pieces, self.labels, self.examples)
        return with_data_of(self, other, ("_train", "_dev"))

    # ---- Training ---------------------------------------------------------------------------------------------------

    def batches(self) -> LabelledBatches:
        """The training batches. The first call splits the texts into pieces."""
        return self._batches

    def prepare(self) -> None:
        """Split all texts of the run into pieces, and check their labels. Only the first call does the work."""
        self.batches()
        for rows in (self._train, self._dev, self._test):
            if rows is not None and rows.cut and jax.process_index() == 0:
                log.warning(
                    "%s: %d of %d texts are cut to data.context = %d pieces",
                    *(", ".join(rows.paths), rows.cut, len(rows), self.config.data.context),
                )

    def content_digests(self) -> dict[str, str]:
        """sha256 of the pieces and labels of the training and of the development examples."""
        return {"sha256 of data.train": self.data_digest(), "sha256 of the dev set": self.dev_digest()}

    def data_digest(self) -> str:
        """Digest of the training texts, their pieces and their labels: it changes if any of them changes."""
        return self._train.sha256()

    def dev_digest(self) -> str:
        """sha256 of the pieces and labels of the development examples; "" without them."""
        return "" if self._dev is None else self._dev.sha256()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters."""
        return {"dev_digest": self.dev_digest(), "scored_with": {"data.context": self.config.data.context}}

    def write_sets(self, folder: epath.Path) -> None:
        """Copy the development and test examples into the workdir."""
        labelled_sets.write(folder, {"dev": self.examples.dev, "test": self.examples.test})

    def describe(self) -> Iterator[str]:
        """Lines for the banner: data, labels and vocabulary."""
        train, batches = self.examples.train, self.batches()
        yield f"data        {train.name}: {len(self._train):,} texts, {self._train.cut:,} cut"
        yield f"labels      {_counted(self.labels, train.examples)}; judged by {self.labels.metric}"
        epochs = self.config.train.steps / batches.batches_per_epoch
        yield f"epochs      {epochs:.3g}, each of {batches.batches_per_epoch:,} updates"
        yield f"padding     {batches.padding:.1%} of positions"
        yield f"vocabulary  {self.pieces.size:,} pieces, sha256 {self.pieces.sha256[:16]}"
        if self._dev is not None:
            yield f"dev set     {self.examples.dev.name}: {len(self._dev):,} texts, {self._dev.cut:,} cut"

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores on the development examples, by name. Logs a sample."""
        if self._dev is None:
            return
        outputs = self._classifier(params).outputs(self._dev.rows)
        for name, value in scores_of(self.labels, self._dev.examples, outputs).items():
            yield f"dev_{name}", value
        if sentence := collapse(self.labels, outputs):
            yield "dev_collapse", sentence
        self.sample(params)

    def sample(self, params: Params) -> None:
        """Log a few development texts with their labels and what the model says."""
        rows = self._dev or self._train
        for example, found in zip(rows.examples, self._classifier(params).predict(rows.rows[:_SAMPLES]), strict=False):
            if jax.process_index() == 0:
                shown = " | ".join(_texts(example)), shown_label(example.label), shown_label(found.label)
                log.info("  sample  %s\n          label %s, model %s", *shown)

    def lines(self, step: int) -> str:
        """Files and line numbers (from 1) of the texts in the batch of update `step` (from 0)."""
        return self.batches().lines(step)

    def _classifier(self, params: Params) -> Classifier:
        model, params = in_type(self.config.model, gathered(params), "auto")
        params = params if jax.process_count() > 1 else on_all_devices(params)
        return Classifier(build(model), params, self.pieces, self.labels, longest=self.config.data.context)

    def _rows(self, given: ExampleSet | None, most: int | None = None) -> LabelledRows | None:
        if given is None:
            return None
        return LabelledRows(given.examples[:most], given.paths, self.pieces, self.labels, self.config.data.context)

    @cached_property
    def _train(self) -> LabelledRows:
        return self._rows(self.examples.train)

    @cached_property
    def _dev(self) -> LabelledRows | None:
        return self._rows(self.examples.dev, self.config.train.eval_sentences)

    @cached_property
    def _test(self) -> LabelledRows | None:
        return self._rows(self.examples.test)

    @cached_property
    def _batches(self) -> LabelledBatches:
        c = self.config
        return LabelledBatches(
            self._train,
            batch_rows=c.tune.batch_rows,
            accumulate=c.train.accumulate,
            buckets=c.data.length_buckets,
            seed=c.train.seed,
        )


# ---- The data --------------------------------------------------------------------------------------------------------


def read(config: FinetuneConfig) -> Examples:
    """The labelled texts of a config. Raises `UserError` if there are none to train on, or a file can't be read."""
    data = config.data
    if not data.train:
        raise UserError("data.train is empty: name a file of labelled texts, such as --data.train train.tsv")
    columns = Columns(data.text, data.second, data.label)

    def examples(kind: str, paths: Sequence[str]) -> ExampleSet | None:
        if not paths:
            return None
        return labelled_sets.from_files(kind, paths, columns, data.kind)

    train, dev, test = (examples(kind, getattr(data, kind)) for kind in ("train", "dev", "test"))
    if dev is None and data.dev_share:
        first, rest = split(train.examples, data.dev_share, data.kind)
        if rest:
            dev, train = ExampleSet("dev", train.name, train.paths, rest), train._replace(examples=first)
    return Examples(train, dev, test)


def _warn_of_doubts(data: LabelledConfig, examples: Examples) -> None:
    """Log a warning for files that are given twice, for texts of the sets that occur in training, and for sets whose
    labels are all the same."""
    warn_of_repeated((f"data.{kind}", path) for kind in ("train", "dev", "test") for path in getattr(data, kind))
    train, *held = (one and (one.name, [tuple(_texts(each)) for each in one.examples]) for one in examples)
    for doubt in seen_doubts(train[1], *held):
        log.warning("%s", doubt)
    for one in (examples.dev, examples.test):
        if one is not None and len(one.examples) > 1 and len({example.label for example in one.examples}) == 1:
            log.warning(
                "%s: the %s set has the label %s alone, so its scores tell little; add texts with other labels",
                *(one.name, one.kind, to_json(one.examples[0].label)),
            )


def _texts(example: Example) -> list[str]:
    """The one or two texts of an example; tagged words are joined by spaces."""
    first = example.text if isinstance(example.text, str) else " ".join(example.text)
    return [first] if example.second is None else [first, example.second]


def shown_label(label: str | float | Sequence[str] | None) -> str:
    """A label as text; "none" where the outputs of the model are not finite."""
    if label is None:
        return "none"
    if isinstance(label, float):
        return f"{label:g}"
    return label if isinstance(label, str) else " ".join(label)


def _counted(labels: Labels, examples: Sequence[Example]) -> str:
    """The labels with their numbers, as text."""
    if labels.kind == "regression":
        return f"numbers, mean {labels.mean:g}, standard deviation {labels.scale:g}"
    counts: Counter[str] = Counter()
    for example in examples:
        counts.update([example.label] if labels.kind == "classes" else example.label)
    most = [f"{name} {count:,}" for name, count in counts.most_common(8)]
    return ", ".join(most) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
