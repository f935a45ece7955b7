"""Counts sentences whose scores are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformer.config import UserError

log = logging.getLogger("transformer")


@dataclass
class Tally:
    """The sentences that a translator has translated or scored, without blank ones."""

    all: int = 0
    broken: int = 0
    """The number of sentences whose scores are not finite."""

    def count(self, scores: Sequence[float | None], first_line: int) -> None:
        """Count sentences by their scores (None for a blank sentence), and warn of scores that are not finite."""
        broken = [i for i, score in enumerate(scores) if score is not None and not math.isfinite(score)]
        self.all += sum(score is not None for score in scores)
        self.broken += len(broken)
        if broken:
            log.warning(
                "line %d: the model's scores are not finite, so there is no translation or score (%d of %d lines)",
                *(first_line + broken[0], len(broken), len(scores)),
            )

    def refuse(self, whose: str = "") -> None:
        """Raise `UserError` if there were sentences and none has a finite score. The message begins with `whose`."""
        if self.all and self.broken == self.all:
            raise UserError(
                f"{whose}no score of {self.all} sentences is a number: the parameters of this model are broken; choose "
                "another checkpoint (--checkpoint), or train again with a lower train.peak_learning_rate"
            )
