"""One config class per task, composed of sections, and the fields that may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from dataclasses import dataclass, field
from typing import Any

from .algorithms import AlgorithmConfig
from .byte_latent import ByteLatentConfig, ByteLatentModel, check_byte_latent
from .codec import C, Relations, build, check_fields, differences, read_json, require
from .documentation import documented
from .errors import UserError, shown
from .finetuning import FinetuneConfig, LabelledConfig, TuneConfig, check_labelled, check_tuning
from .model import BERT, GPT2, MASKED_HEADS, SPECIALS, ModelConfig, check_model
from .parsing import ParsingConfig
from .sections import (
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    MeshConfig,
    PretrainConfig,
    TextConfig,
    TrainConfig,
    check_decode,
    check_train,
)

# Fields that may change when a run is resumed. None of them alters what an update computes.
RESUMABLE = (
    "model.initializer",
    "train.steps",
    "train.seeds",
    "train.*_every",
    "train.remat",
    "train.keep_last",
    "train.patience",
    "train.stop_at",
    "train.eval_sentences",
    "train.non_finite*",
    "decode.*",
    "evaluate.*",
    "mesh.*",
    "data.cache_dir",
    "data.workers",
    "data.tfds_dir",
)


@documented
@dataclass(frozen=True)
class Config:
    """Config of a run of the translation task, as in `configs/*.py` and `workdir/config.json`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    # Class attributes: without annotations, they are not dataclass fields.
    task = "translation"
    movable = (
        *("data.source", "data.target", "data.dev_source", "data.dev_target", "data.test_source", "data.test_target"),
        "data.tokenizer",
    )
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        yield from _of_data(self)
        yield from _of_training(self, self.data.max_length, "sentence of data.max_length")

    def may_become(self, other: Config, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        # For a user's own text, data.languages only affects scoring.
        return name == "data.languages" and self.data.corpus == other.data.corpus == "text"


# Optimisation as for GPT-2 and GPT-3 (Brown et al. 2020, appendix B).
_GPT_TRAINING = TrainConfig(
    batch_tokens=32_768,
    peak_learning_rate=6e-4,
    warmup_steps=2_000,
    schedule="cosine",
    decay_steps=100_000,
    final_learning_rate=0.1,
    adam_b2=0.95,
    adam_eps=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
    label_smoothing=0.0,
)
_SAMPLING = DecodeConfig(sample=True)


@documented
@dataclass(frozen=True)
class LanguageModelConfig:
    """Config of a run of the task that trains a language model, a decoder alone. The default model is GPT-2."""

    model: ModelConfig = GPT2
    data: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = _GPT_TRAINING
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = _SAMPLING

    task = "language_model"
    movable = ("data.text", "data.dev_text", "data.test_text", "data.tokenizer")
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        m, d = self.model, self.data
        yield m.encoder_layers == 0, "model.encoder_layers", "must be 0: a language model has no encoder"
        yield m.decoder_layers > 0, "model.decoder_layers", "must be at least 1: a language model is a decoder"
        if m.positions == "learned":
            longest = d.context + m.position_offset
            rule = f"must be at least {longest}: data.context + model.position_offset; or lower data.context"
            yield m.max_positions >= longest, "model.max_positions", rule
        if d.tokenizer is None and d.pieces == "sentencepiece":
            # Special pieces, bytes and one character: the fewest that SentencePiece accepts with byte pieces.
            fewest = len(SPECIALS) + 256 + 1
            yield d.vocab_size >= fewest, "data.vocab_size", f"must be at least {fewest} with byte pieces"
        yield from _of_training(self, d.context, "row of data.context")

    def may_become(self, other: LanguageModelConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        return name == "data.dev_share" and bool(self.data.dev_text and other.data.dev_text)


# Optimisation as for BERT (Devlin et al. 2019, appendix A.2), but with Adam's bias correction.
_BERT_TRAINING = TrainConfig(
    steps=1_000_000,
    batch_tokens=32_768,
    peak_learning_rate=1e-4,
    warmup_steps=10_000,
    schedule="linear",
    decay_steps=1_000_000,
    adam_b2=0.999,
    adam_eps=1e-6,
    weight_decay=0.01,
    clip_norm=1.0,
    label_smoothing=0.0,
)


@documented
@dataclass(frozen=True)
class MaskedConfig:
    """Config of a run of the task that trains a masked language model, an encoder alone. The default model is BERT."""

    model: ModelConfig = BERT
    data: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = _BERT_TRAINING
    mesh: MeshConfig = field(default_factory=MeshConfig)

    task = "masked"
    movable = ("data.text", "data.unpaired_text", "data.dev_text", "data.test_text", "data.tokenizer")
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        m, d = self.model, self.data
        yield m.decoder_layers == 0, "model.decoder_layers", "must be 0: a masked language model has no decoder"
        if m.positions == "learned":
            longest = d.context + m.position_offset
            rule = f"must be at least {longest}: data.context + model.position_offset; or lower data.context"
            yield m.max_positions >= longest, "model.max_positions", rule
        if d.tokenizer is None and d.pieces == "sentencepiece":
            # Special pieces, bytes, one character, and the mask.
            fewest = len(SPECIALS) + 256 + 2
            yield d.vocab_size >= fewest, "data.vocab_size", f"must be at least {fewest} with byte pieces"
        yield from _of_training(self, d.context, "row of data.context")

    def check_training(self) -> None:
        """Raise `UserError` unless the model has the heads that a run trains. An imported model may have others."""
        require(self, "", _of_heads(self.model, self.data.next_sentence))

    def may_become(self, other: MaskedConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        return name == "data.dev_share" and bool(self.data.dev_text and other.data.dev_text)


RUNS: dict[str, Any] = {
    kind.task: kind
    for kind in (
        *(Config, LanguageModelConfig, MaskedConfig, FinetuneConfig, ParsingConfig, AlgorithmConfig),
        ByteLatentConfig,
    )
}
"""Map each task's name to its config class."""
CONTINUING = (LanguageModelConfig, ByteLatentConfig)
"""The tasks whose models go on from texts."""
WHOLE_DEV = (*CONTINUING, MaskedConfig, AlgorithmConfig)
"""The tasks that are always evaluated on all of their development text."""


def require_task(config: Any, where: object, *kinds: type) -> None:
    """Raise `UserError` unless this is a config of one of these classes. `where`: its file or workdir, for the
    message."""
    if not isinstance(config, kinds):
        tasks = " or ".join(repr(kind.task) for kind in kinds)
        raise UserError(f"{where}: its task is {config.task!r}; give one of the task {tasks}")


_VERBS = {
    Config.task: "translate",
    **{kind.task: "generate" for kind in CONTINUING},
    MaskedConfig.task: "fill",
    FinetuneConfig.task: "predict",
    ParsingConfig.task: "parse",
}


def require_workdir(config: Any, workdir: object, *kinds: type) -> None:
    """`require_task` for the config of a workdir. The message names the verb that reads such a model."""
    verb = _VERBS.get(config.task)
    if verb == "fill" and config.model.head not in MASKED_HEADS:
        verb = "embed"
    try:
        require_task(config, workdir, *kinds)
    except UserError as error:
        raise UserError(f"{error}, or use: python -m transformer {verb} {workdir}" if verb else str(error)) from None


def require_translation(config: Any, where: object) -> None:
    """Raise `UserError` unless this is a config of translation. `where`: its file or workdir, for the message."""
    require_task(config, where, Config)


def resumable(name: str) -> bool:
    """Whether the field with this dotted name may take any value when a run is resumed."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in RESUMABLE)


def conflicts(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The differences that prevent resuming a run of config `old` with config `new`.

    Maps each dotted field name to (old value, new value). Empty if the run can be resumed.
    """
    if type(old) is not type(new):
        return {"task": (old.task, new.task)}

    def may_change(name: str, before: Any, after: Any) -> bool:
        if name == "model.vocab_size":  # None in checkpoints of earlier versions: the tokenizer's size
            return None in (before, after)
        if name in old.movable:
            return type(before) is type(after) and (isinstance(before, str) or len(before) == len(after))
        return resumable(name) or old.may_become(new, name)

    return {name: values for name, values in differences(old, new).items() if not may_change(name, *values)}


def to_json(config: Any) -> str:
    """The config as indented JSON, with its task's name. `from_json` reads it back."""
    return json.dumps({"task": config.task, **dataclasses.asdict(config)}, indent=2) + "\n"


def from_json(text: str, where: str = "config.json") -> Any:
    """Read a config that `to_json` wrote. Without "task", as earlier versions wrote it, the task is translation.

    Missing fields take their defaults. Raises `UserError` for an unknown field or task; `where` names the text in
    the message.
    """
    values = read_json(text, where)
    task = values.pop("task", Config.task)
    if not isinstance(task, str) or task not in RUNS:
        known = ", ".join(RUNS)
        raise UserError(f"{where}: task = {shown(task)}: must be one of {known}; was it written by a newer version?")
    return build(RUNS[task], values, where)


def check(config: Any) -> None:
    """Raise `UserError` for the first field that breaks a rule."""
    check_fields(config, type(config) if type(config) in RUNS.values() else Config)
    require(config, "", [*_of_any(config), *config.relations()])
    for name in (f.name for f in dataclasses.fields(config)):
        if (section := getattr(config, name)).__class__ in CHECKS:
            CHECKS[section.__class__](section)


def with_micro_batches(config: C, count: int) -> C:
    """A copy of the config with train.accumulate = `count`. Raises `UserError` if it breaks a rule."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=count))
    check(config)
    return config


CHECKS = {
    ModelConfig: check_model,
    ByteLatentModel: check_byte_latent,
    TrainConfig: check_train,
    DecodeConfig: check_decode,
    LabelledConfig: check_labelled,
    TuneConfig: check_tuning,
}
"""Map each section class to the function that checks the rules within this section."""


def _of_any(config: Any) -> Relations:
    m, r_drop = config.model, config.train.r_drop
    has = isinstance(config, (Config, FinetuneConfig))
    yield not r_drop or has, "train.r_drop", "must be 0: only translation and fine-tuning have R-Drop"
    every = "must be None: this task is always evaluated on all of its development text"
    yield config.train.eval_sentences is None or not isinstance(config, WHOLE_DEV), "train.eval_sentences", every
    dropout = m.dropout or m.attention_dropout or m.activation_dropout
    yield not r_drop or bool(dropout), "train.r_drop", "must be 0 without dropout: both readings are the same"


def _of_data(config: Config) -> Relations:
    m, d, decode = config.model, config.data, config.decode
    yield m.encoder_layers > 0, "model.encoder_layers", "must be at least 1: translation needs an encoder"
    yield m.decoder_layers > 0, "model.decoder_layers", "must be at least 1: translation needs a decoder"
    yield m.head == "none", "model.head", "must be 'none': translation has no labels"
    one = "must be None: in translation, source and target share a vocabulary"
    yield m.target_vocab_size is None, "model.target_vocab_size", one
    if m.positions == "learned":
        longest = max(d.max_length + m.position_offset, decode.max_source_length + decode.max_extra_length + 1)
        yield (
            m.max_positions >= longest,
            "model.max_positions",
            f"must be at least {longest}: the larger of data.max_length + model.position_offset and "
            "decode.max_source_length + decode.max_extra_length + 1",
        )
    yield (
        d.corpus == "text" or d.languages is not None,
        "data.languages",
        f"must name source and target language for data.corpus = {d.corpus!r}, such as: en de",
    )
    yield not d.weights or len(d.weights) == len(d.source), "data.weights", "must be as many as data.source"
    yield d.fields[0] != d.fields[1], "data.fields", "must be two different names: source field, target field"


def _of_heads(m: ModelConfig, next_sentence: bool) -> Relations:
    where = f"to train with data.next_sentence = {next_sentence}"
    heads = ("pretraining",) if next_sentence else MASKED_HEADS
    yield m.head in heads, "model.head", f"must be {' or '.join(map(repr, heads))} {where}"
    if next_sentence:
        yield m.token_types > 1, "model.token_types", f"must be at least 2 {where}"


def _of_training(config: Any, length: int, unit: str) -> Relations:
    """`length`: the most pieces in a row. `unit`: what such a row holds, and the field that limits it."""
    t = config.train
    yield (
        t.batch_tokens >= length * t.accumulate,
        "train.batch_tokens",
        f"must hold at least one {unit} ({length}) pieces in each of its {t.accumulate} micro-batches; raise it or "
        f"lower {unit.split()[-1]}",
    )
    yield config.mesh.data != 0, "mesh.data", "must be -1 or at least 1"
