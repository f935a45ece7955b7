"""Config of a run that fine-tunes an encoder on labelled texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from .codec import Relations, check_fields, require
from .documentation import documented
from .model import BERT, ModelConfig
from .numbers import INT32_MAX, Count, CountOrZero, Positive, Rule, Share, whole_number
from .sections import MeshConfig, TrainConfig

METRICS = {
    "classes": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman", "mean_squared_error"),
    "tags": ("accuracy", "f1"),
}
"""The scores of each kind of label."""


@documented
@dataclass(frozen=True)
class LabelledConfig:
    """Where labelled texts come from, and how they become rows of pieces."""

    train: tuple[str, ...] = ()
    """Training files: .tsv, .csv or .jsonl, or .conll for tags; compressed or not. Any other name is read as .tsv."""
    dev: tuple[str, ...] = ()
    """Development files: training scores them regularly, and keeps the checkpoint with the best score."""
    test: tuple[str, ...] = ()
    """Test files; evaluate.py scores them by default, else the development files."""
    dev_share: Share = 0.1
    """Without dev: this share of the training rows, drawn at random, is the development set and not trained on. 0 = no
    development set."""
    kind: Literal["classes", "regression", "tags"] = "classes"
    """What a label is: 'classes' = one of several names, 'regression' = a number, 'tags' = a name for each word."""
    text: str = "text"
    """Column of the text, by its name in the header of a .tsv or .csv, or field of a .jsonl. A number counts columns
    from 1, in files without a header. For tags: its words, separated by spaces (in .jsonl also a list)."""
    second: str | None = None
    """Column of the second text, for pairs of texts; None = there is one text."""
    label: str = "label"
    """Column of the label. For tags: those of all words, separated by spaces (in .jsonl also a list)."""
    tokenizer: str | None = None
    """File of an existing vocabulary: a vocab.txt or tokenizer.json with WordPiece, as BERT has it (needs the package
    tokenizers), or a SentencePiece model. With train.init_from, leave it out."""
    pieces: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    """Kind of a new vocabulary, which is trained on the training texts. Without effect if there is one."""
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
    """Number of pieces in a new vocabulary, special pieces included."""
    lower_case: bool = True
    """Fold upper and lower case in a new vocabulary; in one of WordPiece also remove accents."""
    tokenizer_lines: Count = 2_000_000
    """Train a new vocabulary on at most this many texts, sampled evenly."""
    context: Annotated[int, Rule(least=5, most=1_000_000)] = 128
    """Number of pieces in a row, [CLS] and [SEP] included. Longer texts lose their end; of a pair, the longer one."""
    length_buckets: Annotated[int, Rule(least=1, most=64)] = 6
    """Number of lengths that batches are padded to."""
    cache_dir: str | None = None
    """Local folder for vocabularies and compiled programs; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""


@documented
@dataclass(frozen=True)
class TuneConfig:
    """How long an encoder is fine-tuned, on which loss, and which of its parameters."""

    epochs: Positive | None = 3.0
    """Number of times that the training rows are read. It sets train.steps, and with it train.warmup_steps,
    train.decay_steps, train.eval_every and train.checkpoint_every. None = set those yourself."""
    warmup_share: Share = 0.1
    """With `epochs`: share of the updates in which the learning rate rises."""
    evaluations: Count = 1
    """With `epochs`: number of evaluations an epoch. After each, a checkpoint is saved."""
    batch_rows: Count = 32
    """Number of texts, or pairs of texts, per update. It sets train.batch_tokens."""
    metric: Literal["auto", "accuracy", "f1", "matthews", "pearson", "spearman", "mean_squared_error"] = "auto"
    """Score on the development set that ranks checkpoints. 'auto' = accuracy of classes, Pearson's correlation of
    numbers, F1 of tagged spans (accuracy if the tags mark no spans). With two classes, f1 is that of the second name;
    with more, the mean of all."""
    class_weights: tuple[str, ...] = ()
    """Weights of classes in the loss: 'balanced' = in inverse proportion to their numbers; or NAME=WEIGHT, such as
    spam=2; classes that are not named have weight 1."""
    frozen_layers: CountOrZero | None = None
    """Leave the embeddings and this many of the lowest layers as they are; 0 = the embeddings alone, None = nothing."""
    layer_decay: Annotated[float, Rule(above=0, most=1)] = 1.0
    """Factor of the learning rate from each layer to the one below it; the pooler and the head have the full rate."""
    redrawn_layers: CountOrZero = 0
    """Draw this many of the highest layers of train.init_from, and the pooler, anew; without it an error."""


# Optimisation as for fine-tuning BERT (Devlin et al. 2019, §4), but with Adam's bias correction and gradients clipped
# (Mosbach et al. 2021).
_FINETUNING = TrainConfig(
    peak_learning_rate=5e-5,
    warmup_steps=1_000,
    schedule="linear",
    decay_steps=100_000,
    adam_b2=0.999,
    adam_eps=1e-6,
    weight_decay=0.01,
    clip_norm=1.0,
    label_smoothing=0.0,
)


_MODEL = replace(BERT, head="sequence")


@documented
@dataclass(frozen=True)
class FinetuneConfig:
    """Config of a run of the task that fine-tunes an encoder alone on labelled texts.

    With train.init_from, the model is that of the start, with a head for the labels. The default is BERT.
    """

    model: ModelConfig = _MODEL
    data: LabelledConfig = field(default_factory=LabelledConfig)
    train: TrainConfig = _FINETUNING
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    task = "labels"
    movable = ("data.train", "data.dev", "data.test", "data.tokenizer")
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""
    computed = ("steps", "warmup_steps", "decay_steps", "eval_every", "checkpoint_every", "batch_tokens")
    """Fields of `train` that `tune` sets."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        m, d, t = self.model, self.data, self.tune
        yield m.decoder_layers == 0, "model.decoder_layers", "must be 0: texts are labelled by an encoder alone"
        if m.positions == "learned":
            longest = d.context + m.position_offset
            rule = f"must be at least {longest}: data.context + model.position_offset; or lower data.context"
            yield m.max_positions >= longest, "model.max_positions", rule
        if d.second is not None:
            yield m.token_types > 1, "model.token_types", "must be at least 2 for pairs of texts (data.second)"
        known = METRICS[d.kind]
        rule = f"must be {', '.join(('auto', *known[:-1]))} or {known[-1]} with data.kind = {d.kind!r}"
        yield t.metric in ("auto", *known), "tune.metric", rule
        rule = "is for classes and tags alone"
        yield not self.train.r_drop or d.kind != "regression", "train.r_drop", rule
        yield not t.class_weights or d.kind == "classes", "tune.class_weights", "is for data.kind = 'classes' alone"
        for name in ("frozen_layers", "redrawn_layers"):
            count = getattr(t, name) or 0
            yield (
                count <= m.encoder_layers,
                f"tune.{name}",
                f"must be at most model.encoder_layers ({m.encoder_layers})",
            )
        yield self.mesh.data != 0, "mesh.data", "must be -1 or at least 1"
        parts = self.train.accumulate
        yield t.batch_rows % parts == 0, "tune.batch_rows", f"must be a multiple of train.accumulate ({parts})"

    def may_become(self, other: FinetuneConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        return name == "data.dev_share" and bool(self.data.dev and other.data.dev)


def weight_of(text: str) -> tuple[str, float] | None:
    """(name, weight) of an entry NAME=WEIGHT of `TuneConfig.class_weights`; None if it is no such entry."""
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        return None
    return (name, weight) if equals and 0 <= weight <= 1e6 else None


def check_labelled(data: LabelledConfig) -> None:
    """Raise `UserError` for the first field of the data section that breaks a rule of this section."""
    check_fields(data, LabelledConfig, "data.")
    require(data, "data.", _of_columns(data))


def _of_columns(d: LabelledConfig) -> Relations:
    named = {name: value for name in ("text", "second", "label") if (value := getattr(d, name)) is not None}
    numbered = {name for name, value in named.items() if whole_number(value)}
    for name, value in named.items():
        yield bool(value), name, "must name a column"
        others = "a number from 1, as another column is" if numbered else "a name"
        yield not numbered or name in numbered, name, f"must be {others}: all are numbers, or all are names"
    yield d.second is None or d.second != d.text, "second", "must be another column than data.text"
    yield d.label not in (d.text, d.second), "label", "must be another column than the texts"
    yield d.kind != "tags" or d.second is None, "second", "must be None for tags: they have one text"


def check_tuning(tune: TuneConfig) -> None:
    """Raise `UserError` for the first field of the section `tune` that breaks a rule of this section."""
    check_fields(tune, TuneConfig, "tune.")
    entries = tune.class_weights
    named = [weight[0] for entry in entries if (weight := weight_of(entry))]
    good = entries == ("balanced",) or len(set(named)) == len(entries)
    rule = "must be 'balanced' alone, or entries such as spam=2, each with another name and a weight up to 1e6"
    require(tune, "tune.", [(good, "class_weights", rule)])
