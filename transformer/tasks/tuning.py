"""How fine-tuning completes its config, and how it treats the parameters of its start."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from typing import Any

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import FinetuneConfig, UserError, check
from transformer.data.labels import FILE, Labels
from transformer.files import path_of
from transformer.inference.classifier import labels_in
from transformer.tasks.starts import adopted, start_model, stored_model
from transformer.tasks.vocabulary import content_of

log = logging.getLogger("transformer")

_LAYER = re.compile(r"encoder/layers/([0-9]+)/")


def as_stored(config: FinetuneConfig, stored: FinetuneConfig) -> FinetuneConfig:
    """`config` for a run that resumes in a workdir whose config is `stored`. What the data and the start decided is
    taken from there."""
    decided = {
        name: getattr(stored.train, name)
        for name in FinetuneConfig.computed
        if getattr(config.train, name) == getattr(FinetuneConfig.train, name)
    }
    model, train = stored_model(config, stored), dataclasses.replace(config.train, **decided)
    return dataclasses.replace(config, model=model, train=train)


def refuse_computed(config: FinetuneConfig) -> None:
    """Raise `UserError` if a new run is given a field of `train` that `tune` sets."""
    for name in FinetuneConfig.computed:
        of_batch = name == "batch_tokens"
        if (of_batch or config.tune.epochs) and getattr(config.train, name) != getattr(FinetuneConfig.train, name):
            rule = "tune.batch_rows sets it" if of_batch else "tune.epochs sets it"
            fix = "" if of_batch else ", or set tune.epochs to None"
            raise UserError(f"train.{name} = {getattr(config.train, name)}: {rule}; leave it out{fix}")


def refuse_without_start(config: FinetuneConfig) -> None:
    """Raise `UserError` if a new run without a start is to draw layers of its start anew."""
    if config.tune.redrawn_layers and config.train.init_from is None:
        raise UserError(
            f"tune.redrawn_layers = {config.tune.redrawn_layers}: without train.init_from all layers are new; leave it "
            "out, or give train.init_from"
        )


def from_start(config: FinetuneConfig, workdir: str | None) -> FinetuneConfig:
    """The config of a run with the model of `train.init_from`, if a new run starts from one.

    Raises `UserError` if the start has a decoder, or if the config gives a field of the model another value.
    """
    there = start_model(config, workdir)
    if there is None:
        return config
    if there.decoder_layers:
        start = config.train.init_from
        raise UserError(f"train.init_from = {start!r}: its model has a decoder; give an encoder alone, such as a BERT")
    return adopted(config, there, kept=["labels"], head="sequence")


def with_head(config: FinetuneConfig, labels: int) -> FinetuneConfig:
    """The config with the head for this number of labels. Raises `UserError` if model.labels is another number."""
    if config.model.labels not in (None, labels):
        raise UserError(
            f"model.labels = {config.model.labels}: the training texts have {labels}; leave model.labels out"
        )
    head = "token" if config.data.kind == "tags" else "sequence"
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head, labels=labels))


def completed(config: FinetuneConfig, labels: Labels, rows: int) -> FinetuneConfig:
    """The config with the head for these labels, and with the fields of `train` that `tune` sets, for this number of
    training rows. Fields that a resumed run has from its stored config stay."""
    config, t = with_head(config, labels.size), config.tune
    size = min(t.batch_rows, -(-rows // config.train.accumulate) * config.train.accumulate)
    computed: dict[str, Any] = {"batch_tokens": t.batch_rows * config.data.context}
    if t.epochs is not None:
        updates = -(-rows // size)
        steps = max(1, round(t.epochs * updates))
        warmup = max(1, round(t.warmup_share * steps))
        every = -(-updates // t.evaluations)
        computed |= {"steps": steps, "warmup_steps": warmup, "eval_every": every, "checkpoint_every": every}
        if config.train.schedule != "inverse_sqrt":
            computed["decay_steps"] = max(steps, warmup + 1)
    for name in list(computed):
        if getattr(config.train, name) != getattr(FinetuneConfig.train, name):
            del computed[name]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **computed))
    check(config)
    return config


def rate_of(config: FinetuneConfig) -> Callable[[str], float] | None:
    """The factor of the learning rate of each parameter, by its path; 0 = frozen. None if all are 1."""
    layers, t = config.model.encoder_layers, config.tune
    if t.frozen_layers is None and t.layer_decay == 1:
        return None

    def rate(path: str) -> float:
        match, top = _LAYER.match(path), path.startswith(("pooler/", "label_head/"))
        level = layers + 1 if top else int(match[1]) + 1 if match else 0  # 0: the embeddings
        level = layers if path.startswith("encoder/norm/") else level  # of a pre-norm model, behind the layers
        frozen = t.frozen_layers is not None and level <= t.frozen_layers
        return 0.0 if frozen else t.layer_decay ** (layers + 1 - level)

    return rate


def redrawn_by(config: FinetuneConfig, labels: Labels) -> Callable[[str, Checkpoint], bool]:
    """Whether a run draws a parameter anew, although its start has it: the highest layers, if `tune` says so, and a
    head for other labels."""
    lowest = config.model.encoder_layers - config.tune.redrawn_layers

    def redrawn(path: str, start: Checkpoint) -> bool:
        if path.startswith("label_head/"):
            return not start.has(FILE) or not heads_agree(labels_in(start), labels)
        match = _LAYER.match(path)
        return bool(config.tune.redrawn_layers) and (path.startswith("pooler/") or (match and int(match[1]) >= lowest))

    return redrawn


def heads_agree(there: Labels, here: Labels) -> bool:
    """Whether a head for the labels of a start is one for the labels of this run."""
    pairs = there.pairs == here.pairs or None in (there.pairs, here.pairs)
    return pairs and all(getattr(there, name) == getattr(here, name) for name in ("kind", "names", "mean", "scale"))


def refuse_other_labels(labels: Labels, workdir: str | None) -> None:
    """Raise `UserError` if the run in the workdir was trained on other labels. Its file may be damaged: then those of
    the newest whole checkpoint count, with a warning."""
    folder = path_of(workdir) if workdir else None
    if folder is None or not (folder / "config.json").exists():
        return
    stored, ours = content_of(folder / FILE), labels.file[1]
    if stored in (None, ours):
        return
    whole = Checkpoints(workdir).newest_whole()
    if whole is None or whole.file(FILE) != ours:
        raise UserError(
            f"the training texts have other labels than those that {workdir} was trained on; restore them, or use "
            "another --workdir"
        )
    log.warning("%s is not as it was written; taking the labels that checkpoint %s holds", folder / FILE, whole.name)
