"""What judges the checkpoints of a run: an ordered list of scores that are compared in turn.

A checkpoint's progress.json holds

    judged                  the list, such as [["dev_bleu", "up"], ["dev_chrf", "up"], ["dev_loss", "down"]]
    dev_bleu, dev_chrf ...  the scores by these names; null where nothing was evaluated
    dev_digest              sha256 of the development text
    scored_with             what else the scores depend on, such as the tokeniser of BLEU and the options of decoding
    best                    the scores of the best evaluation so far
    evaluations_without_better

Scores compare only if they were taken on the same text, in the same way, and if the same score counts first.
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
"""(name of a score, "up" or "down") in the order of comparison; "down" = smaller is better."""

FORMER = (("dev_bleu", "up"),)
"""What judged in checkpoints of earlier versions."""

# Options of decoding that change how fast it is, not what comes out; and those that a search or sampling ignores.
_OF_SPEED = ("batch_sentences", "batch_tokens", "streams")
_IGNORED = {False: ("n_best", "temperature", "top_k", "top_p", "seed"), True: ("beam_size",)}


def rank(scores: Mapping[str, Any], judged: Judged) -> tuple[float, ...] | None:
    """What to compare scores by: the greater tuple is the better one. None without any finite score.

    A score that is missing or not finite is worse than any other.
    """
    values = [_worth(scores.get(name), direction) for name, direction in judged]
    return tuple(values) if any(value > -math.inf for value in values) else None


def _worth(value: Any, direction: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return -math.inf
    with contextlib.suppress(OverflowError):  # of an integer of 400 digits
        if math.isfinite(value):
            return -float(value) if direction == "down" else float(value)
    return -math.inf


def decoding(options: DecodeConfig) -> dict[str, Any]:
    """The options of decoding on which translations depend, by their dotted names."""
    ignored = (*_OF_SPEED, *_IGNORED[options.sample])
    fields = {f"decode.{name}": x for name, x in dataclasses.asdict(options).items() if name not in ignored}
    return json.loads(json.dumps(fields))  # as a checkpoint gives it back


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why the scores of two checkpoints do not compare, given the progress of both; empty if they do.

    What one of them does not name counts as unchanged.
    """
    found = []
    if before.get("dev_digest", now.get("dev_digest")) != now.get("dev_digest"):
        found.append("the development text or train.eval_sentences has changed")
    first_before, first = before["judged"][0], now["judged"][0]
    if list(first_before) != list(first):
        found.append(f"{first[0]} counts first instead of {first_before[0]}")
    old, new = before["scored_with"], now["scored_with"]
    found += [f"{name} is {new[name]} instead of {old[name]}" for name in new if old.get(name, new[name]) != new[name]]
    return found


def best_of(scored: Mapping[int, Mapping[str, Any]], judged: Judged | None = None) -> int | None:
    """The step of the best evaluation (the earliest of equals), or None without any finite score.

    Only evaluations whose scores compare with those of the newest one count. `scored`: the progress of each step, in
    today's form; `judged`: what to judge by, instead of what judged when they were saved.
    """
    if not scored:
        return None
    if judged is not None:  # whatever judged when they were saved
        scored = {step: {**progress, "judged": judged} for step, progress in scored.items()}
    now = scored[max(scored)]
    alike = {step: progress for step, progress in scored.items() if not changes(progress, now)}
    ranks = {step: rank(progress, now["judged"]) for step, progress in alike.items()}
    return max((step for step in ranks if ranks[step]), key=lambda step: (ranks[step], -step), default=None)


def upgraded(progress: dict[str, Any], config: Callable[[], Config]) -> dict[str, Any]:
    """The progress of a checkpoint, in today's form; `config` is asked for only if an earlier version saved it."""
    if "judged" in progress or "dev_bleu" not in progress:
        return progress
    tokenizer = re.search(r"\|tok:([^|]+)\|", str(progress.get("dev_bleu_signature")))
    best = progress.get("best_bleu")
    return {
        **progress,
        "judged": [list(score) for score in FORMER],
        "scored_with": {"bleu_tokenize": tokenizer[1] if tokenizer else "13a", **decoding(config().decode)},
        "best": None if best is None else {"dev_bleu": best},
    }


def check_progress(progress: Mapping[str, Any]) -> None:
    """Raise an error of Python's own where this is no progress, in today's form, that can be compared and gone on
    from."""
    changes(progress, progress)
    rank(progress, progress["judged"])
    best, stale = progress.get("best") or {}, progress.get("evaluations_without_better", 0)
    if type(stale) is not int or not all(value is None or type(value) in (int, float) for value in best.values()):
        raise TypeError(f"best is {best!r}, evaluations_without_better {stale!r}")


class Judge:
    """The best evaluation of a run, and how many evaluations came after it."""

    def __init__(self, judged: Judged, now: Mapping[str, Any], progress: Mapping[str, Any]):
        """`now`: dev_digest and scored_with of this run; `progress`: that of the checkpoint it goes on from, or {}."""
        self.judged, self._now = judged, dict(now)
        self.best: dict[str, float | None] | None = progress.get("best")
        self.stale: int = progress.get("evaluations_without_better", 0)
        self.begun_anew: list[str] = []
        """Why the best evaluation was forgotten: earlier scores do not compare with those of today."""
        if "judged" in progress and (self.best is not None or self.stale):
            self.begun_anew = changes(progress, {**self._now, "judged": judged})
        if self.begun_anew:
            self.best, self.stale = None, 0

    def better(self, scores: Mapping[str, Any]) -> bool:
        """Take in an evaluation. Whether it is better than all before it: equal ones are not."""
        found, best = rank(scores, self.judged), rank(self.best or {}, self.judged)
        better = found is not None and (best is None or found > best)
        if better:
            self.best, self.stale = {name: scores.get(name) for name, _ in self.judged}, 0
        else:
            self.stale += 1
        return better

    def judges(self, scores: Mapping[str, Any]) -> bool:
        """Whether these are scores of an evaluation, as there is a development set."""
        return any(name in scores for name, _ in self.judged)

    def progress(self, scores: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a checkpoint stores, with the scores of its own evaluation, or None."""
        own = {name: None if scores is None else scores.get(name) for name, _ in self.judged}
        own |= {name: text for name, text in (scores or {}).items() if isinstance(text, str)}  # signatures
        return {
            **own,
            "judged": [list(score) for score in self.judged],
            **self._now,
            "best": self.best,
            "evaluations_without_better": self.stale,
        }

    def __str__(self) -> str:
        """The scores of the best evaluation, to be read by people."""
        scores = (self.best or {}).items()
        return ", ".join(f"{name} {value:.4g}" for name, value in scores if value is not None) or "nothing finite"
