"""Bounds of numeric fields and options, as part of the field's type, and parsing of whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Rule:
    """Bounds of a numeric field, for `Annotated`: at least, above, at most, below. None = no bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def violation(self, value: float) -> str | None:
        """Return the bound that the value violates, in words, or None.

        The program uses numbers in float32. So a value too small for float32 counts as 0, and a value that float32
        rounds to a bound counts as that bound.
        """
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


_SMALLEST, FLOAT32_MAX, _ROUNDING = 1.18e-38, 3.4e38, 2**-24  # limits of float32
INT32_MAX = 2**31 - 1

Count = Annotated[int, Rule(least=1, most=INT32_MAX)]
CountOrZero = Annotated[int, Rule(least=0, most=INT32_MAX)]
LayersOrZero = Annotated[int, Rule(least=0, most=1_000)]
Length = Annotated[int, Rule(least=1, most=1_000_000)]
LengthOrZero = Annotated[int, Rule(least=0, most=1_000_000)]
Workers = Annotated[int, Rule(least=0, most=1_024)]
Seed = Annotated[int, Rule(least=0, below=2**32)]  # JAX drops higher bits
Share = Annotated[float, Rule(least=0, below=1)]
Dropout = Annotated[float, Rule(least=0, most=0.999)]
Positive = Annotated[float, Rule(above=0, most=FLOAT32_MAX)]


def whole_number(text: str) -> int | None:
    """Parse up to 18 digits 0 to 9 as an int. Return None for any other text.

    `str.isdigit` alone would accept '²', and `int` refuses 5,000 digits.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
