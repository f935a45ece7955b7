"""The labels of a fine-tuned encoder: names of classes or tags, or the scale of numbers; kept with each checkpoint."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from transformer.config import METRICS, LabelledConfig, UserError, weight_of
from transformer.data.labelled import NUMBER, Example

log = logging.getLogger("transformer")

FILE = "labels.json"
_SPANS = re.compile(r"O|[BIESLU]-.+")  # tags of words inside and outside of spans
_FURTHEST = 1e15  # standard deviations of a number from the mean; float32 holds the sum of squares of such ones
_SHOWN = 12  # names that an error lists


@dataclass(frozen=True)
class Labels:
    """What the outputs of a head mean."""

    kind: str
    """'classes', 'regression' or 'tags', as `LabelledConfig.kind`."""
    metric: str
    """The score on the development set that ranks checkpoints."""
    names: tuple[str, ...] = ()
    """The name of each output; none for numbers."""
    usual: str = ""
    """The name that most texts or words have in training; it is given to words that the model does not see."""
    mean: float = 0.0
    scale: float = 1.0
    """Of numbers: a label is mean + scale * the output of the head."""
    pairs: bool | None = False
    """Whether an input is a pair of texts; None = it may be one or two, as of an imported model."""

    @property
    def size(self) -> int:
        """Number of outputs of the head."""
        return len(self.names) or 1

    @property
    def direction(self) -> str:
        """Whether a better score of `metric` is higher ("up") or lower ("down")."""
        return "down" if self.metric == "mean_squared_error" else "up"

    @property
    def spans(self) -> bool:
        """Whether the tags mark spans of words, such as B-PER and I-PER."""
        return marks_spans(self.names)

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the file that `read` reads."""
        values = asdict(self) | {"direction": self.direction}
        return FILE, (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode()

    def ids(self, example: Example, path: str) -> np.ndarray:
        """The label of an example as the loss reads it, int32: 1 + the index of its name, or of that of each word; for
        a number, the bits of the float32 (label - mean) / scale.

        Raises `UserError` for a name that training has not seen, and for a number far beyond those of training. `path`:
        the example's file.
        """
        if self.kind == "regression":
            number = (float(example.label) - self.mean) / self.scale
            if abs(number) > _FURTHEST:
                raise UserError(
                    f"{path}:{example.line}: the label {example.label} is {abs(number):.1g} standard deviations away "
                    f"from the mean of training, {self.mean:g}; correct it"
                )
            return np.array([number], np.float32).view(np.int32)
        given = [example.label] if isinstance(example.label, str) else example.label
        try:
            return np.array([self._numbers[name] for name in given], np.int32)
        except KeyError as error:
            known = ", ".join([*self.names[:_SHOWN], *(["..."] if len(self.names) > _SHOWN else [])])
            raise UserError(
                f"{path}:{example.line}: the label {error.args[0]!r} never occurs in training, which has {known}; "
                "correct it, or add such texts to the training files"
            ) from None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names, 1)}


def marks_spans(names: Sequence[str]) -> bool:
    """Whether these tags mark spans of words, such as B-PER, I-PER and O."""
    return any(name != "O" for name in names) and all(_SPANS.fullmatch(name) for name in names)


def learn(config: LabelledConfig, metric: str, train: Sequence[Example]) -> Labels:
    """The labels that the training examples have. `metric`: `TuneConfig.metric`.

    Names are in the order of their numbers if all are whole numbers, else in that of their characters. Raises
    `UserError` if all examples have the same label.
    """
    kind, files = config.kind, ", ".join(config.train)
    if kind == "regression":
        values = np.array([float(example.label) for example in train])
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(values.mean()), float(values.std())
        if not math.isfinite(scale):
            raise UserError(f"{files}: the numbers have no finite variance in 64 bits; divide them by a constant")
        if scale <= 1e-12 * abs(mean):
            raise UserError(f"{files}: all numbers are {values[0]:g}; nothing can be learnt from one label alone")
        metric = "pearson" if metric == "auto" else metric
        return Labels(kind, metric, mean=mean, scale=scale, pairs=config.second is not None)
    counts: Counter[str] = Counter()
    for example in train:
        counts.update([example.label] if kind == "classes" else example.label)
    if len(counts) < 2:
        raise UserError(
            f"{files}: all labels are {next(iter(counts), 'missing')!r}; nothing can be learnt from one label alone; "
            "check data.label, the column of the labels"
        )
    if kind == "classes" and len(counts) > max(100, len(train) // 2):
        raise UserError(
            f"{files}: {len(counts):,} different labels for {len(train):,} texts; check data.label, the column of the "
            "labels; for numbers set data.kind = 'regression'"
        )
    if kind == "classes" and all(map(NUMBER.fullmatch, counts)) and any(float(name) % 1 for name in counts):
        log.warning("%s: the labels are numbers, but are learnt as classes; else: --data.kind regression", files)
    words = sum(counts.values())
    if kind == "tags" and len(counts) > max(100, words // 10):
        log.warning(
            "%s: %s different tags for %s words; is the last column the tag? awk '{print $1, $2}' keeps two others",
            *(files, f"{len(counts):,}", f"{words:,}"),
        )
    whole = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in counts)
    names = tuple(sorted(counts, key=(lambda name: (int(name), name)) if whole else str))
    if metric == "auto":
        metric = "f1" if kind == "tags" and marks_spans(names) else "accuracy"
    return Labels(kind, metric, names, counts.most_common(1)[0][0], pairs=config.second is not None)


def read(content: bytes, where: str) -> Labels:
    """The labels that `Labels.file` wrote. Raises `UserError` if the content is of another kind."""
    try:
        values = json.loads(content)
        values.pop("direction")
        labels = Labels(**values | {"names": tuple(values["names"])})
        if labels.metric not in METRICS[labels.kind] or not all(isinstance(name, str) for name in labels.names):
            raise ValueError(f"metric {labels.metric!r} of {labels.kind!r}")
        return labels
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} was not written by this program ({type(error).__name__}: {error})") from None


def class_weights(given: Sequence[str], labels: Labels, train: Sequence[Example]) -> tuple[float, ...] | None:
    """The weight of each class in the loss, by `TuneConfig.class_weights`; None if all are 1.

    Raises `UserError` for a name that no training text has, and if all weights are 0.
    """
    if not given:
        return None
    if given == ("balanced",):
        counts = Counter(example.label for example in train)
        return tuple(len(train) / (labels.size * counts[name]) for name in labels.names)
    weights = dict(entry for entry in map(weight_of, given) if entry is not None)
    if unknown := sorted(weights.keys() - set(labels.names)):
        raise UserError(f"tune.class_weights: no training text has the label {unknown[0]!r}")
    found = tuple(weights.get(name, 1.0) for name in labels.names)
    if not any(found):
        raise UserError("tune.class_weights: all weights are 0; give one class a higher weight")
    return found
