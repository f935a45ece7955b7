"""Scores of a fine-tuned encoder on labelled texts; of several seeds, with mean and spread."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from transformer.checkpoint import AVERAGE, Checkpoint, Checkpoints, best_seed, seeds_in
from transformer.config import FinetuneConfig, UserError
from transformer.data.framing import Row
from transformer.data.labelled import Columns, Example
from transformer.data.labelled_rows import framed
from transformer.data.labels import Labels
from transformer.files import refuse_pipe
from transformer.inference.classifier import Classifier
from transformer.streams import plain
from transformer.tasks import labelled_sets
from transformer.tasks.label_metrics import (
    class_metrics,
    confusion,
    confusion_lines,
    regression_metrics,
    tag_metrics,
)
from transformer.tasks.seeds import mean_and_deviation, of_each_seed, require_alike

log = logging.getLogger("transformer")


def scores_of(labels: Labels, examples: Sequence[Example], outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores by name, "loss" (without smoothing and class weights) first. `outputs`: see `Classifier.outputs`.

    The loss is nats a text or tagged word, or the mean squared error. All are nan if an output is not finite.
    """
    if labels.kind == "regression":
        gold = np.array([float(example.label) for example in examples])
        predicted = labels.mean + labels.scale * np.array([float(output[0]) for output in outputs])
        metrics = regression_metrics(gold, predicted)
        scores = {"loss": metrics["mean_squared_error"], **metrics}
    elif labels.kind == "classes":
        gold, stacked = _gold(labels, [example.label for example in examples]), np.stack(outputs)
        counts_CC = confusion(gold, stacked.argmax(1), labels.size)
        scores = {"loss": _nll(stacked, gold), **class_metrics(counts_CC)}
    else:
        seen = [list(example.label[: len(output)]) for example, output in zip(examples, outputs, strict=True)]
        gold = _gold(labels, [name for names in seen for name in names])
        loss = _nll(np.concatenate(outputs), gold)
        gold_tags, predicted_tags = [example.label for example in examples], _tags(labels, examples, outputs)
        scores = {"loss": loss, **tag_metrics(gold_tags, predicted_tags, spans_marked=labels.spans)}
    if not all(np.isfinite(output).all() for output in outputs):
        return dict.fromkeys(scores, math.nan)
    return scores


def _gold(labels: Labels, names: Sequence[str]) -> np.ndarray:
    """The index of each name."""
    numbers = {name: i for i, name in enumerate(labels.names)}
    return np.array([numbers[name] for name in names])


def _nll(logits_XL: np.ndarray, gold_X: np.ndarray) -> float:
    """The mean negative log-likelihood."""
    logits_XL = logits_XL.astype(np.float64)
    top_X = logits_XL.max(1)
    log_sums_X = top_X + np.log(np.exp(logits_XL - top_X[:, None]).sum(1))
    return float((log_sums_X - logits_XL[np.arange(len(gold_X)), gold_X]).mean())


def _tags(labels: Labels, examples: Sequence[Example], outputs: Sequence[np.ndarray]) -> list[list[str]]:
    """The likeliest tag of each word; of words that the model does not see, the usual one."""
    return [
        [labels.names[i] for i in output.argmax(1).tolist()] + [labels.usual] * (len(example.text) - len(output))
        for example, output in zip(examples, outputs, strict=True)
    ]


def collapse(labels: Labels, outputs: Sequence[np.ndarray]) -> str | None:
    """A sentence if the model gives all texts the same label, as fine-tuning with a high learning rate may; or None."""
    if len(outputs) < 2:
        return None
    if labels.kind == "regression":
        values = np.array([float(output[0]) for output in outputs])
        return "all texts get about the same number" if np.ptp(values) < 0.01 else None
    found = np.unique(np.concatenate([np.atleast_2d(output).argmax(1) for output in outputs]))
    return f"all get the label {labels.names[int(found[0])]!r}" if len(found) == 1 else None


# ---- evaluate.py -----------------------------------------------------------------------------------------------------


Options = Callable[[FinetuneConfig], FinetuneConfig]
"""The checkpoint's config, with the options of the command line."""


def evaluate_workdir(
    workdir: str,
    *,
    data: str | None = None,
    checkpoint: str | None = None,
    options: Options = lambda config: config,
    kind: str | None = None,
) -> dict[str, Any]:
    """The scores of a workdir's checkpoint on labelled texts, as evaluate.py prints them.

    `data`: a file; default: the workdir's set of this kind, 'test' or 'dev', else its test set, else its development
    set. `options` may change the columns of the
    file, which are else those of the training files. Of a workdir with several seeds, the scores of each ("seeds"),
    their mean and their standard deviation. Raises `UserError` if the workdir or the file can't be used.
    """
    if data is not None and seeds_in(workdir):
        refuse_pipe(data)
    each = of_each_seed(workdir, lambda folder: _evaluated(folder, data, checkpoint, options, kind))
    if not each:
        return _evaluated(workdir, data, checkpoint, options, kind)
    results = list(each.values())
    texts = {seed: f"{result['test_set']} ({result['texts_sha256'][:8]})" for seed, result in each.items()}
    require_alike(workdir, "texts to score", texts)
    best, metric = str(best_seed(workdir)), results[0]["metric"]
    return {
        "test_set": results[0]["test_set"],
        "texts": results[0]["texts"],
        "metric": metric,
        **mean_and_deviation([result["scores"][metric] for result in results]),
        "best_seed": int(best.rpartition("-")[2]),
        "collapsed": [seed for seed, result in each.items() if result["collapse"]],
        "seeds": {str(seed): result for seed, result in each.items()},
    }


def _evaluated(
    workdir: Any, data: str | None, checkpoint: str | None, options: Options, kind: str | None
) -> dict[str, Any]:
    """The scores of one run."""
    opened, classifier = Checkpoints(workdir).read(checkpoint, lambda opened: (opened, Classifier.of(opened)))
    labels, config = classifier.labels, opened.config
    columns = _columns(workdir, config, options, labels, given=data is not None)
    if data is None:
        given = labelled_sets.read(workdir, labels.kind, labels.pairs, kind)
    else:
        given = labelled_sets.from_files("given", [data], columns, labels.kind)
    for example in given.examples:
        labels.ids(example, given.paths[example.file])  # raises for a label that training has not seen
    rows = framed(given.examples, classifier.vocabulary, labels, classifier.longest)
    log.info("scoring %s texts of %s with checkpoint %s of %s", f"{len(rows):,}", given.name, opened.name, workdir)
    outputs = classifier.outputs(rows)
    scores = scores_of(labels, given.examples, outputs)
    if not all(map(math.isfinite, scores.values())):
        raise UserError(f"{workdir}: the scores of checkpoint {opened.name} are not finite; choose another checkpoint")
    result = {
        "test_set": given.name,
        "checkpoint": str(opened.name),
        "texts": len(rows),
        "texts_sha256": sha256(repr([example[:3] for example in given.examples]).encode()).hexdigest(),
        "texts_cut": sum(row.cut > 0 for row in rows),
        "metric": labels.metric,
        "scores": scores,
        "collapse": collapse(labels, outputs),
        "stopped_early": _stopped_early(workdir, opened.config),
    }
    if labels.kind == "classes":
        gold = _gold(labels, [example.label for example in given.examples])
        counts_CC = confusion(gold, np.stack(outputs).argmax(1), labels.size)
        result |= {"labels": list(labels.names), "confusion": counts_CC.tolist()}
    if given.kind == "dev":
        result["last_epoch"] = _of_last(workdir, labels, given.examples, rows)
    if opened.name == AVERAGE:
        result["averaged_steps"] = opened.progress["averaged_steps"]
    return result


def _columns(workdir: Any, config: FinetuneConfig, options: Options, labels: Labels, *, given: bool) -> Columns:
    """The columns of a file of labelled texts. `given`: whether there is such a file.

    Raises `UserError` if the options name columns without a file, or for pairs where the model labels single texts, or
    the other way round.
    """
    before, after = (Columns(c.data.text, c.data.second, c.data.label) for c in (config, options(config)))
    if changed := [name for name in Columns._fields if getattr(after, name) != getattr(before, name)]:
        if not given:
            raise UserError(f"--data.{changed[0]} is for --data FILE: the sets of the workdir have their own columns")
        if labels.pairs is not None and labels.pairs != (after.second is not None):
            wanted = "pairs of texts: name the column" if labels.pairs else "single texts: leave the column out"
            raise UserError(f"--data.second {after.second}: the model of {workdir} labels {wanted}")
    return after


def _of_last(workdir: Any, labels: Labels, examples: Sequence[Example], rows: Sequence[Row]) -> dict[str, Any] | None:
    """Step and score of the last evaluated checkpoint on the development examples; None if the last one has no score.

    The best one is chosen on the same texts, so its score is too good. The score is computed anew: training may have
    scored the first texts only (`train.eval_sentences`), or other ones.
    """

    def read(opened: Checkpoint) -> dict[str, Any] | None:
        if opened.progress.get(f"dev_{labels.metric}") is None:
            return None
        value = scores_of(labels, examples, Classifier.of(opened).outputs(rows))[labels.metric]
        return {"checkpoint": str(opened.name), labels.metric: value}

    return Checkpoints(workdir).read("last", read)


def _stopped_early(workdir: Any, config: FinetuneConfig) -> str | None:
    """A sentence if a run with development texts was stopped before its first evaluation; or None."""
    checkpoints, judged = Checkpoints(workdir), bool(config.data.dev or config.data.dev_share)
    if not judged or not checkpoints.states() or checkpoints.best() is not None:
        return None
    step = checkpoints.read("last", lambda opened: opened.progress["step"])
    if step >= config.train.steps:
        return None
    return f"stopped at update {step} of {config.train.steps:,}, before its first evaluation"


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text."""
    if "seeds" not in result:
        yield from _lines_of_one(result)
        return
    metric = result["metric"]
    yield f"{plain(result['test_set'])}: {result['texts']:,} texts, {len(result['seeds'])} seeds"
    for seed, one in result["seeds"].items():
        last = one.get("last_epoch")
        after = f", last epoch {last[metric]:.4f}" if last else ""
        notes = f"   COLLAPSED: {one['collapse']}" if one["collapse"] else ""
        notes += f"   STOPPED EARLY: {one['stopped_early']}" if one["stopped_early"] else ""
        yield f"seed {seed}: checkpoint {one['checkpoint']}, {metric} {one['scores'][metric]:.4f}{after}{notes}"
    deviation = result["standard_deviation"]
    spread = "" if deviation is None else f", standard deviation {deviation:.4f}"
    yield f"mean {metric} {result['mean']:.4f}{spread}; best on the development set: seed {result['best_seed']}"


def _lines_of_one(result: Mapping[str, Any]) -> Iterator[str]:
    metric = result["metric"]
    cut = f", {result['texts_cut']:,} cut" if result["texts_cut"] else ""
    yield f"{plain(result['test_set'])}: {result['texts']:,} texts{cut}, checkpoint {result['checkpoint']}"
    others = [f"{name} {value:.4f}" for name, value in result["scores"].items() if name != metric]
    yield f"{metric} {result['scores'][metric]:.4f}   {'  '.join(others)}"
    if last := result.get("last_epoch"):
        chosen = "" if result["checkpoint"] == AVERAGE else " (the checkpoint above was chosen on these texts)"
        yield f"last epoch: {metric} {last[metric]:.4f}{chosen}"
    if result["collapse"]:
        yield f"COLLAPSED: {result['collapse']}; train again with another seed or a lower train.peak_learning_rate"
    if result["stopped_early"]:
        yield f"STOPPED EARLY: {result['stopped_early']}; the same train.py command again resumes it"
    if "confusion" in result:
        yield from confusion_lines(np.array(result["confusion"]), [plain(name) for name in result["labels"]])
