"""Numbers in fields and options: their bounds, as part of a field's type, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Rule:
    """Bounds of a number, as part of its field's type; None = no such bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def broken(self, value: float) -> str | None:
        """What the value must be, where it is not. Numbers are used in float32: one too small for it counts as 0, one
        that is rounded to a bound lies there."""
        value = 0 if abs(value) < _SMALLEST else value
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:,}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:,}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:,}"
        if self.below is not None and not (value if isinstance(value, int) else value * (1 + _ROUNDING)) < self.below:
            return f"must be below {self.below:,}"
        return None


_SMALLEST, FLOAT32_MAX, _ROUNDING = 1.18e-38, 3.4e38, 2**-24  # of float32, in which the numbers below are used
INT32_MAX = 2**31 - 1

Count = Annotated[int, Rule(least=1, most=INT32_MAX)]
CountOrZero = Annotated[int, Rule(least=0, most=INT32_MAX)]
Layers = Annotated[int, Rule(least=1, most=1_000)]
Length = Annotated[int, Rule(least=1, most=1_000_000)]
LengthOrZero = Annotated[int, Rule(least=0, most=1_000_000)]
Workers = Annotated[int, Rule(least=0, most=1_024)]
Seed = Annotated[int, Rule(least=0, below=2**32)]  # JAX forgets what is above
Share = Annotated[float, Rule(least=0, below=1)]
Positive = Annotated[float, Rule(above=0, most=FLOAT32_MAX)]


def whole_number(text: str) -> int | None:
    """The number that up to 18 of the digits 0 to 9 spell; None for any other text, such as '²', which Python calls a
    digit, or 5,000 digits, which it does not read."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
