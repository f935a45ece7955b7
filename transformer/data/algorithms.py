"""Algorithmic tasks: random instances of any length, and for some a RASP-L program that solves them.

A sequence is BOS, prompt, SEP, answer, EOS. Sources: Zhou et al. 2023 (arXiv 2310.16028), whose conjecture is that a
Transformer generalises to longer instances if a short RASP-L program solves the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer.config import BOS, EOS, SPECIALS, AlgorithmConfig, UserError
from transformer.data.rasp import aggregate, first_where, kqv, seen, select, shifted, width

SEP = len(SPECIALS)
FIRST = SEP + 1
"""The id of the first symbol of a task."""
HINTS = 400
"""Number of index hints: symbols that have an order. An instance uses neighbouring ones, from a random one on."""

Batch = dict[str, np.ndarray]
Program = Callable[[np.ndarray], np.ndarray]
"""The ids of a sequence -> for each position, the id that follows."""


class Instance(NamedTuple):
    """The ids of a prompt and of its answer."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        """The whole sequence."""
        return [BOS, *self.prompt, SEP, *self.answer, EOS]


@dataclass(frozen=True)
class Algorithm:
    """A task. An instance of length n has n symbols to compute with, besides hints."""

    name: str
    vocab_size: int
    draw: Callable[[np.random.Generator, int], Instance]
    """(random numbers, length) -> an instance."""
    size: Callable[[int], int]
    """The most ids of an instance of a length, BOS, SEP and EOS included."""
    program: Program | None = None
    """A RASP-L program that solves the task; None if none is known."""
    longest: int | None = None
    """The longest instance that there are symbols for; None = any."""


# ---- Count -----------------------------------------------------------------------------------------------------------


def count(numbers: int = 200) -> Algorithm:
    """From a to b: "3 6 >" gives "3 4 5 6". The length is that of the answer."""

    def draw(rng: np.random.Generator, length: int) -> Instance:
        first = FIRST + int(rng.integers(numbers - length + 1))
        return Instance([first, first + length - 1], list(range(first, first + length)))

    def program(x: np.ndarray) -> np.ndarray:
        start = first_where(shifted(x, -1) == BOS, x)
        end = first_where(shifted(x == SEP, 0).astype(bool), shifted(shifted(x, -1), -1))
        following = np.where(x == SEP, start, x + 1)
        # `end` is known behind SEP; an instance has at least one number.
        return np.where((x != SEP) & (x == end), EOS, following)

    return Algorithm("count", FIRST + numbers, draw, lambda n: n + 5, program, numbers)


# ---- Mode ------------------------------------------------------------------------------------------------------------


def mode(symbols: int = 26) -> Algorithm:
    """The most frequent symbol; instances have no second one that is as frequent."""

    def draw(rng: np.random.Generator, length: int) -> Instance:
        while True:
            drawn = rng.integers(symbols, size=length)
            counts = np.bincount(drawn, minlength=symbols)
            if (counts == counts.max()).sum() == 1:
                return Instance((FIRST + drawn).tolist(), [FIRST + int(counts.argmax())])

    def program(x: np.ndarray) -> np.ndarray:
        counts = np.where(x >= FIRST, width(select(x, x, np.equal)), 0)
        highest = kqv(np.ones_like(x), np.ones_like(x), counts, np.equal, by="max")
        return np.where(x == SEP, kqv(counts, highest, x, np.equal, by="max"), EOS)

    return Algorithm("mode", FIRST + symbols, draw, lambda n: n + 4, program)


# ---- Sort and copy ---------------------------------------------------------------------------------------------------


def sort(symbols: int = 200) -> Algorithm:
    """Different symbols in ascending order."""

    def draw(rng: np.random.Generator, length: int) -> Instance:
        drawn = (FIRST + rng.permutation(symbols)[:length]).tolist()
        return Instance(drawn, sorted(drawn))

    def program(x: np.ndarray) -> np.ndarray:
        keys = np.where(seen(x == SEP) | (x < FIRST), -1, x)
        return kqv(keys, np.where(x == SEP, 0, x), x, np.greater, EOS, "min")

    return Algorithm("sort", FIRST + symbols, draw, lambda n: 2 * n + 3, program, symbols)


def copy(symbols: int = 200, *, repeated: bool = False) -> Algorithm:
    """The prompt again. With different symbols each one tells which follows it; with repeated ones it does not."""

    def draw(rng: np.random.Generator, length: int) -> Instance:
        drawn = rng.integers(symbols, size=length) if repeated else rng.permutation(symbols)[:length]
        return Instance((FIRST + drawn).tolist(), (FIRST + drawn).tolist())

    def program(x: np.ndarray) -> np.ndarray:
        before = np.where(shifted(seen(x == SEP), 0).astype(bool), -1, shifted(x, -1))
        found = kqv(before, np.where(x == SEP, BOS, x), x, np.equal, EOS, "max")
        return np.where(found == SEP, EOS, found)

    if repeated:
        return Algorithm("copy_repeated", FIRST + symbols, draw, lambda n: 2 * n + 3)
    return Algorithm("copy", FIRST + symbols, draw, lambda n: 2 * n + 3, program, symbols)


# ---- Parity ----------------------------------------------------------------------------------------------------------

EVEN, ODD = FIRST, FIRST + 1


def parity(*, scratchpad: bool = False) -> Algorithm:
    """Whether the number of ones is even. With a scratchpad each bit has an index hint before it; the answer names the
    hint of each one, and the parity so far behind it."""
    hints = ODD + 1

    def draw(rng: np.random.Generator, length: int) -> Instance:
        bits = rng.integers(2, size=length)
        if not scratchpad:
            return Instance((EVEN + bits).tolist(), [EVEN + int(bits.sum() % 2)])
        first = hints + int(rng.integers(HINTS - length + 1))
        prompt = [id for i, bit in enumerate(bits.tolist()) for id in (first + i, EVEN + bit)]
        places = np.flatnonzero(bits).tolist()
        steps = [id for n, i in enumerate(places, 1) for id in (first + i, EVEN + n % 2)]
        return Instance(prompt, [EVEN, *steps])

    def program(x: np.ndarray) -> np.ndarray:
        before = shifted(x, -1)
        ones = np.where(seen(x == SEP) | (x != ODD), -1, before)  # the hints of ones
        following = kqv(ones, np.where(before >= hints, before, 0), ones, np.greater, EOS, "min")
        flipped = np.where(before == EVEN, ODD, EVEN)
        return np.where(x == SEP, EVEN, np.where(x >= hints, flipped, following))

    if not scratchpad:
        return Algorithm("parity", ODD + 1, draw, lambda n: n + 4)
    return Algorithm("parity_scratchpad", hints + HINTS, draw, lambda n: 4 * n + 4, program, HINTS)


# ---- Addition --------------------------------------------------------------------------------------------------------

PLUS = FIRST
ZERO = PLUS + 1


def addition(*, hints: bool = False, reverse: bool = False) -> Algorithm:
    """The sum of two numbers of n digits each, with n + 1 digits. With hints, each digit has one before it, and those
    of one place are the same. Reversed, the last digit of the answer comes first, so that carries go with the
    writing."""
    first_hint = ZERO + 10

    def draw(rng: np.random.Generator, length: int) -> Instance:
        numbers = rng.integers(10, size=(2, length))
        carry, result = 0, []
        for both in reversed(numbers.sum(axis=0).tolist()):
            carry, digit = divmod(both + carry, 10)
            result.append(digit)
        result = [carry, *reversed(result)]
        first = first_hint + 1 + int(rng.integers(HINTS - length)) if hints else 0

        def written(places: Iterable[tuple[int, int]]) -> list[int]:
            """The ids of (hint, digit) pairs."""
            return [id for hint, digit in places for id in ((hint, ZERO + digit) if hints else (ZERO + digit,))]

        one, other = (written(enumerate(number, first)) for number in numbers.tolist())
        answer = list(enumerate(result, first - 1))
        return Instance([*one, PLUS, *other], written(reversed(answer) if reverse else answer))

    def program(x: np.ndarray) -> np.ndarray:
        before, behind = shifted(x, -1), seen(x == SEP)
        second = seen(x == PLUS)
        in_one, in_other = (
            np.where(where & (before >= first_hint), before, -1) for where in (~second, second & ~behind)
        )

        def sums(place: np.ndarray) -> np.ndarray:
            """The sum of both digits at a place; 0 in front of the numbers."""
            one, other = (kqv(keys, place, x - ZERO, np.equal, 0, "max") for keys in (in_one, in_other))
            return one + other

        # At a hint: the digit of the place. The carry follows from the digits of the place before and what was written.
        written = before - ZERO
        lower = np.where(before == SEP, 0, sums(x + 1))
        carry = (lower > 9) | ((lower == 9) & (written == 0) & (before != SEP))
        digit = ZERO + (sums(x) + carry) % 10
        # At a digit: the next hint, down to the one in front of the numbers.
        lowest = kqv(np.where(in_one > 0, 1, 0), np.ones_like(x), in_one, np.equal, 0, "min")
        highest = kqv(np.where(in_one > 0, 1, 0), np.ones_like(x), in_one, np.equal, 0, "max")
        following = np.where(before < lowest, EOS, before - 1)
        return np.where(x == SEP, highest, np.where(x >= first_hint, digit, following))

    solved = program if hints and reverse else None
    name = "_".join(["addition", *(["hints"] if hints else []), *(["reversed"] if reverse else [])])
    each = 2 if hints else 1
    longest = HINTS - 1 if hints else None
    return Algorithm(
        name, first_hint + (HINTS if hints else 0), draw, lambda n: each * (3 * n + 1) + 4, solved, longest
    )


# ---- And -------------------------------------------------------------------------------------------------------------

BITS, FIXED = 20, 5


def conjunction(seed: int = 0, *, training: bool = True) -> Algorithm:
    """Whether all of 20 bits are 1. In training five of them, at places that the seed decides, are always 1.

    So the AND of the other 15 bits fits the training data as well, with a polynomial of lower degree.
    """
    order = np.random.default_rng(seed).permutation(BITS)

    def bits(free: np.ndarray, fixed: np.ndarray) -> Instance:
        values = np.zeros(BITS, int)
        values[order[: BITS - FIXED]], values[order[BITS - FIXED :]] = free, fixed
        return Instance((EVEN + values).tolist(), [EVEN + int(values.all())])

    def draw(rng: np.random.Generator, length: int) -> Instance:
        """Of half of the instances the free bits are all 1; of the others any number of them is 0."""
        free = np.ones(BITS - FIXED, int)
        if rng.random() < 0.5:
            free[rng.permutation(BITS - FIXED)[: int(rng.integers(1, BITS - FIXED + 1))]] = 0
        if training:
            return bits(free, np.ones(FIXED, int))
        while (fixed := rng.integers(2, size=FIXED)).all():
            pass
        return bits(np.ones(BITS - FIXED, int), fixed)

    def program(x: np.ndarray) -> np.ndarray:
        zeros = np.tril(np.broadcast_to(x == EVEN, (len(x), len(x))))
        return np.where(x == SEP, aggregate(zeros, np.full(len(x), EVEN), ODD, "max"), EOS)

    return Algorithm("and", ODD + 1, draw, lambda n: BITS + 4, program, BITS)


def algorithm_of(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of a config. Raises `UserError` if it has too few symbols for the lengths."""
    d = config.data
    symbols = () if d.symbols is None else (d.symbols,)
    made = {
        "count": lambda: count(*symbols),
        "mode": lambda: mode(*symbols),
        "sort": lambda: sort(*symbols),
        "copy": lambda: copy(*symbols, repeated=d.repeated),
        "parity": lambda: parity(scratchpad=d.hints),
        "addition": lambda: addition(hints=d.hints, reverse=d.reverse),
        "and": lambda: conjunction(config.train.seed),
    }[d.algorithm]()
    longest = d.longest_tested
    if d.algorithm != "and" and made.longest is not None and longest > made.longest:
        fix = "raise data.symbols, or lower the lengths" if symbols else "lower the lengths"
        raise UserError(f"data.tested: {made.name} has symbols for lengths up to {made.longest}, not {longest}; {fix}")
    return made


# ---- Batches ---------------------------------------------------------------------------------------------------------


def rows(instances: Sequence[Instance], count: int, length: int) -> Batch:
    """The arrays of these instances, as a language model reads them (see `data.windows`): only the answer and EOS are
    predicted. Padded to `length` positions and `count` rows."""
    batch = {name: np.zeros((count, length), np.int32) for name in ("text", "next", "predicted")}
    for row, instance in enumerate(instances):
        ids = instance.ids
        end, begin = len(ids) - 1, len(instance.prompt) + 1
        batch["text"][row, :end], batch["next"][row, :end] = ids[:-1], ids[1:]
        batch["predicted"][row, begin:end] = 1
    return batch


class InstanceBatches:
    """An endless random-access sequence of training batches (see `training.task.Batches`), all of one shape.

    Each row is drawn anew, from the seed, the update and its number alone; its length is drawn first.
    """

    batches_per_epoch = 1_000_000_000
    """There are no epochs: no instance is drawn on purpose a second time."""

    def __init__(self, algorithm: Algorithm, *, count: int, shortest: int, longest: int, seed: int):
        """`count`: rows of a batch. `shortest` and `longest`: the lengths of instances."""
        self._algorithm, self._count, self._lengths, self._seed = algorithm, count, (shortest, longest), seed
        self._length = padded_size(algorithm, longest)
        self.shapes = (dict.fromkeys(("text", "next", "predicted"), (count, self._length)),)
        """The only shape."""

    def shape(self, step: int) -> dict[str, tuple[int, int]]:
        """The (rows, length) of each array."""
        return self.shapes[0]

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of update `step`, and its index within the epoch; both count from 0."""
        return divmod(step, self.batches_per_epoch)

    def digest(self) -> str:
        """Hex sha256 of all that determines the batches."""
        return hashlib.sha256(f"{self._algorithm.name} {self.shapes} {self._lengths} {self._seed}".encode()).hexdigest()

    def __getitem__(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return self.read(step, 0, self._count)

    def read(self, step: int, begin: int, end: int) -> Batch:
        """Rows `begin` up to `end` of the batch of an update, without drawing the others."""
        return rows([self._drawn(step, row) for row in range(begin, end)], end - begin, self._length)

    def _drawn(self, step: int, row: int) -> Instance:
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 0, step, row]))
        shortest, longest = self._lengths
        return self._algorithm.draw(rng, int(rng.integers(shortest, longest + 1)))


def padded_size(algorithm: Algorithm, length: int) -> int:
    """Positions of a row for instances up to a length: a multiple of 8."""
    return -(-(algorithm.size(length) - 1) // 8) * 8


def drawn(algorithm: Algorithm, lengths: Iterable[int], seed: int) -> list[Instance]:
    """An instance of each of these lengths. Never those of training: the sequence of random numbers is another one."""
    return [
        algorithm.draw(np.random.default_rng(np.random.SeedSequence([seed, 1, i])), length)
        for i, length in enumerate(lengths)
    ]
