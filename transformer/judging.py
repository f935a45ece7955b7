"""Selection of the best checkpoint: an ordered list of scores, compared one after the other.

A checkpoint's progress.json holds

    judged                  the list, such as [["dev_bleu", "up"], ["dev_chrf", "up"], ["dev_loss", "down"]]
    dev_bleu, dev_chrf ...  the scores with these names; null if the checkpoint was not evaluated
    dev_digest              sha256 of the development text
    scored_with             other settings that the scores depend on: BLEU's tokeniser, options of decoding
    best                    the scores of the best evaluation so far
    evaluations_without_better    the number of evaluations since the best one

Scores are comparable only if they have the same development text, the same settings and the same first score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformer.config import Config, DecodeConfig

Judged = Sequence[Sequence[str]]
"""Pairs (name of a score, "up" or "down") in the order of comparison; "down" = smaller is better."""

EARLIER_JUDGED = (("dev_bleu", "up"),)
"""The list in checkpoints of earlier versions."""

# Options of decoding that affect only speed, and those that beam search (False) or sampling (True) ignores.
_SPEED_ONLY = ("batch_sentences", "batch_tokens", "streams")
_IGNORED = {False: ("n_best", "temperature", "top_k", "top_p", "min_p", "seed"), True: ("beam_size",)}


def rank(scores: Mapping[str, Any], judged: Judged) -> tuple[float, ...] | None:
    """The sort key of scores: a greater tuple is better. None if no score is finite.

    A score that is missing or not finite ranks below all others.
    """
    values = [_sort_value(scores.get(name), direction) for name, direction in judged]
    return tuple(values) if any(value > -math.inf for value in values) else None


def _sort_value(value: Any, direction: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -math.inf
    with contextlib.suppress(OverflowError):  # of an integer of 400 digits
        if math.isfinite(value):
            return -float(value) if direction == "down" else float(value)
    return -math.inf


def decoding(options: DecodeConfig) -> dict[str, Any]:
    """Map the dotted name of each option of decoding that translations depend on to its value."""
    ignored = (*_SPEED_ONLY, *_IGNORED[options.sample])
    fields = {f"decode.{name}": x for name, x in dataclasses.asdict(options).items() if name not in ignored}
    return json.loads(json.dumps(fields))  # the types that a checkpoint's JSON returns


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Reasons why the scores of two checkpoints are not comparable, given both progress dicts; empty if they are.

    An entry that is missing on one side counts as unchanged.
    """
    reasons = []
    if len({one["dev_digest"] for one in (before, now) if "dev_digest" in one}) > 1:
        reasons.append("the development text or train.eval_sentences has changed")
    first_before, first = before["judged"][0], now["judged"][0]
    if list(first_before) != list(first):
        reasons.append(f"{first[0]} counts first instead of {first_before[0]}")
    old, new = before["scored_with"], now["scored_with"]
    reasons += [
        f"{name} is {new[name]} instead of {old[name]}" for name in new if old.get(name, new[name]) != new[name]
    ]
    return reasons


def best_of(scored: Mapping[int, Mapping[str, Any]], judged: Judged | None = None) -> int | None:
    """The step of the best evaluation (the earliest of equals), or None if no score is finite.

    Only evaluations whose scores are comparable with those of the newest one count. `scored`: the progress of each
    step, in the current format. `judged`: the list to rank by; None = the list that was saved.
    """
    if not scored:
        return None
    if judged is not None:  # overrides the saved list
        scored = {step: {**progress, "judged": judged} for step, progress in scored.items()}
    now = scored[max(scored)]
    alike = {step: progress for step, progress in scored.items() if not changes(progress, now)}
    ranks = {step: rank(progress, now["judged"]) for step, progress in alike.items()}
    return max((step for step in ranks if ranks[step]), key=lambda step: (ranks[step], -step), default=None)


def upgraded(progress: dict[str, Any], config: Callable[[], Config]) -> dict[str, Any]:
    """Convert the progress of an earlier version to the current format; `config` is called only if that is needed."""
    if "judged" in progress or "dev_bleu" not in progress:
        return progress
    tokenizer = re.search(r"\|tok:([^|]+)\|", str(progress.get("dev_bleu_signature")))
    best = progress.get("best_bleu")
    return {
        **progress,
        "judged": [list(score) for score in EARLIER_JUDGED],
        "scored_with": {"bleu_tokenize": tokenizer[1] if tokenizer else "13a", **decoding(config().decode)},
        "best": None if best is None else {"dev_bleu": best},
    }


def check_progress(progress: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or another built-in error if a progress in the current format is malformed."""
    changes(progress, progress)
    rank(progress, progress["judged"])
    best, stale = progress.get("best") or {}, progress.get("evaluations_without_better", 0)
    if type(stale) is not int or not all(value is None or type(value) in (int, float) for value in best.values()):
        raise TypeError(f"best is {best!r}, evaluations_without_better {stale!r}")
    interval, owed = progress.get("interval", {}), progress.get("owed")
    owed = {} if owed is None else owed
    left_out, skipped = progress.get("left_out", []), progress.get("skipped", 0)
    numbers = (*interval.values(), *(value for value in owed.values() if value is not None))
    if not all(map(_is_number, numbers)) or (interval and not interval["updates"] > 0):
        raise TypeError(f"interval is {interval!r}, owed {owed!r}")
    if not isinstance(left_out, list) or not all(type(update) is int for update in (skipped, *left_out)):
        raise TypeError(f"left_out is {left_out!r}, skipped {skipped!r}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


class Judge:
    """Tracks the best evaluation of a run, and the number of evaluations since then."""

    def __init__(self, judged: Judged, now: Mapping[str, Any], progress: Mapping[str, Any]):
        """`now`: scored_with of this run, and dev_digest if it has a development text. `progress`: that of the
        checkpoint it resumes from, or {}."""
        self.judged, self._now = judged, json.loads(json.dumps(now))  # as a checkpoint's JSON returns it
        self.best: dict[str, float | None] | None = progress.get("best")
        self.stale: int = progress.get("evaluations_without_better", 0)
        self.reset_reasons: list[str] = []
        """Reasons why the best evaluation was reset: earlier scores are not comparable with those of this run."""
        if "judged" in progress and (self.best is not None or self.stale):
            self.reset_reasons = changes(progress, {**self._now, "judged": judged})
        if self.reset_reasons:
            self.best, self.stale = None, 0

    def better(self, scores: Mapping[str, Any]) -> bool:
        """Record an evaluation. Returns whether it is strictly better than all before it."""
        ranked, best = rank(scores, self.judged), rank(self.best or {}, self.judged)
        better = ranked is not None and (best is None or ranked > best)
        if better:
            self.best, self.stale = {name: scores.get(name) for name, _ in self.judged}, 0
        else:
            self.stale += 1
        return better

    def over(self, patience: int | None, stop_at: float | None) -> str:
        """Why a run with these `train.patience` and `train.stop_at` ends after this evaluation; "" if it goes on."""
        if patience is not None and self.stale >= patience:
            return f"nothing better than {self} in {self.stale} evaluations"
        (name, direction), best = self.judged[0], rank(self.best or {}, self.judged[:1])
        if stop_at is not None and best is not None and best[0] >= _sort_value(stop_at, direction):
            return f"{name} has reached train.stop_at = {stop_at:g}"
        return ""

    def judges(self, scores: Mapping[str, Any]) -> bool:
        """Whether `scores` has any of the scores to rank by: without a development set it has none."""
        return any(name in scores for name, _ in self.judged)

    def progress(self, scores: Mapping[str, Any] | None) -> dict[str, Any]:
        """The entries for a checkpoint's progress.json. `scores`: the checkpoint's own evaluation, or None."""
        entries = {name: None if scores is None else scores.get(name) for name, _ in self.judged}
        entries |= {name: text for name, text in (scores or {}).items() if isinstance(text, str)}  # signatures
        return {
            **entries,
            "judged": [list(score) for score in self.judged],
            **self._now,
            "best": self.best,
            "evaluations_without_better": self.stale,
        }

    def __str__(self) -> str:
        """The scores of the best evaluation, for the log."""
        scores = (self.best or {}).items()
        return ", ".join(f"{name} {value:.4g}" for name, value in scores if value is not None) or "nothing finite"
