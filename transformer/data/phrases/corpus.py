"""The generated corpus, which needs no download: an endless stream of English-German and English-French sentences with
numbers, dates, times, money, measures, countries and languages. Names come from the CLDR (Babel), number words from
num2words.

If one side has figures, the other spells them out ("at 7:45 pm" - "um neunzehn Uhr fünfundvierzig"; "at seven
forty-five pm" - "um 19:45 Uhr"). Two exceptions: dates such as 03/14/2024 are figures on both sides, and times such as
"a quarter to eight in the evening" are words on both. Every sentence has exactly one translation, in both directions.

A hash of the value decides which values are held out: numbers (whether a count, year, ordinal, amount or measure, with
or without decimals), dates, days of the year and times of day. A sentence has only values of its split, so no training
sentence has a test value. The training text does have the parts of a value (digits, words, the day, month and year of a
date) and the closed classes: numbers that are one word in English (0 to 20, 30, ... 90), full hours, names, countries,
languages, nouns, months and weekdays. If a sentence has closed classes only, the hash of its template and values
together decides.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import UserError
from transformer.data.phrases import wording
from transformer.data.phrases.templates import TEMPLATES
from transformer.data.text import Corpora, Parallel
from transformer.files import cached, write_file

VERSION = 1  # raise it with every change of the sentences, also by templates or wording, so that new files are written
SUPPORTED = (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en"))
DEV_PAIRS, TEST_PAIRS = 500, 1_000

logger = logging.getLogger("transformer")

# ---- slots: each kind has a function that draws (value, key) and one that words the value. The hash of the key decides
# the split of the value; the key of a closed class is None.

Value = Any  # hashable; its type depends on the kind, and the `wording.say_*` of the kind takes it
Draw = Callable[[random.Random], tuple[Value, str | None]]


def _below(rng: random.Random, n: int) -> int:
    return int(rng.random() * n)  # random() is the one method whose sequence Python promises to keep


def _pick(rng: random.Random, options: Sequence[Any]) -> Any:
    return options[_below(rng, len(options))]


def _integer(rng: random.Random, low: int, digits: int, counts: bool = True) -> int:
    """An integer from `low` up, of at most `digits` digits. Most are below 10,000, and large ones are often round. A
    count is never 101, 201, ..., because German has no settled form for it ("hundertein Bücher", "hunderteins Bücher").
    """
    while True:
        size = _pick(rng, (1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6))
        if len(str(low)) <= size <= digits:
            n = 10 ** (size - 1) + _below(rng, 9 * 10 ** (size - 1))
            if n >= 1000 and rng.random() < 0.5:
                n -= n % 100
            if n >= low and not (counts and n > 100 and n % 100 == 1):
                return n


def _number_key(n: int, hundredths: int = 0) -> str | None:
    if hundredths:
        return f"number {n}.{hundredths:02}"
    return None if n < 20 or n in range(20, 100, 10) else f"number {n}"  # "sixteen" and "fifty" are words to be learned


def _integers(low: int, digits: int, counts: bool = True) -> Draw:
    def draw(rng: random.Random) -> tuple[int, str | None]:
        n = _integer(rng, low, digits, counts)
        return n, _number_key(n)

    return draw


def _counts(low: int, digits: int, options: Sequence[Any]) -> Draw:
    def draw(rng: random.Random) -> tuple[tuple[int, Any], str | None]:
        n = _integer(rng, low, digits)
        return (n, _pick(rng, options)), _number_key(n)

    return draw


def _measures(digits: int, *units: str) -> Draw:
    def draw(rng: random.Random) -> tuple[tuple[int, str], str | None]:
        unit = _pick(rng, units)
        if rng.random() < 0.6:
            n, hundredths = _integer(rng, 2, digits), 0
        else:
            n, hundredths = _integer(rng, 1, 2), _pick(rng, (10 * (1 + _below(rng, 9)), 1 + _below(rng, 99)))
        return (100 * n + hundredths, unit), _number_key(n, hundredths)

    return draw


def _money(rng: random.Random) -> tuple[tuple[int, str], str | None]:
    currency = _pick(rng, list(wording.CENTS) if rng.random() < 0.6 else list(wording.CURRENCIES))
    # An amount of 1 ("ein Euro") only for currencies without an adjective, which German would decline.
    n, cents = _integer(rng, 1 if currency in ("EUR", "USD", "CHF") else 2, 4), 0
    if currency in wording.CENTS and n < 1000 and rng.random() < 0.7:
        cents = _pick(rng, (50, 95, 99, 2 + _below(rng, 98)))
    return (100 * n + cents, currency), _number_key(n, cents)


def _year(rng: random.Random) -> tuple[int, str]:
    year = 1900 + _below(rng, 200)
    return year, f"number {year}"


def _date(rng: random.Random) -> tuple[tuple[datetime.date, bool], str]:
    date = datetime.date(1900, 1, 1) + datetime.timedelta(_below(rng, 73_049))  # to the end of 2099
    return (date, rng.random() < 0.2), f"date {date}"


def _full_date(rng: random.Random) -> tuple[tuple[datetime.date, bool], str]:
    (date, _), key = _date(rng)
    return (date, False), key


def _day(rng: random.Random) -> tuple[tuple[datetime.date, bool], str]:
    date = datetime.date(2024, 1, 1) + datetime.timedelta(_below(rng, 366))
    return (date, False), f"day {date:%m-%d}"


def _time(rng: random.Random) -> tuple[tuple[int, int, bool], str]:
    hour = _below(rng, 24)
    minute = _pick(rng, (0, 5 * _below(rng, 12), _below(rng, 60)))
    twelve_hours = hour in wording.PERIOD and minute % 5 == 0 and rng.random() < 0.5
    return (hour, minute, twelve_hours), f"time {hour}:{minute:02}" if minute else None


def _closed(options: Sequence[Any]) -> Draw:
    return lambda rng: (_pick(rng, options), None)


PEOPLE = [(gender, name) for gender, names in wording.NAMES.items() for name in names]
KINDS: dict[str, tuple[Draw, Callable[[Value, str, str, bool], str]]] = {
    "n": (_integers(1, 6, counts=False), wording.say_number),
    "label": (_integers(1, 3, counts=False), wording.say_label),
    "age": (_integers(2, 2), wording.say_number),
    "big": (_integers(1000, 6), wording.say_number),
    "nth": (_integers(1, 2), wording.say_ordinal),
    "items": (_counts(1, 3, range(len(wording.NOUNS["en"]))), wording.say_things),
    "things": (_counts(2, 3, range(len(wording.NOUNS["en"]))), wording.say_things),
    "duration": (_counts(1, 2, ("second", "minute", "hour")), wording.say_duration),
    "period": (_counts(1, 2, ("day", "week", "month", "year")), wording.say_duration),
    "money": (_money, wording.say_money),
    "length": (_measures(4, "length-meter", "length-kilometer", "length-mile"), wording.say_measure),
    "height": (_measures(3, "length-meter", "length-foot"), wording.say_measure),
    "mass": (_measures(3, "mass-gram", "mass-kilogram"), wording.say_measure),
    "volume": (_measures(3, "volume-milliliter", "volume-liter"), wording.say_measure),
    "temperature": (_measures(2, "temperature-celsius", "temperature-fahrenheit"), wording.say_measure),
    "speed": (_measures(3, "speed-kilometer-per-hour", "speed-mile-per-hour"), wording.say_measure),
    "area": (_measures(4, "area-square-meter", "area-hectare", "area-square-kilometer"), wording.say_measure),
    "percent": (_measures(2, "concentr-percent"), wording.say_measure),
    "year": (_year, wording.say_year),
    "date": (_date, wording.say_date),
    "fulldate": (_full_date, wording.say_full_date),
    "day": (_day, wording.say_day),
    "time": (_time, wording.say_time),
    "who": (_closed([*PEOPLE, ("f", None), ("m", None)]), wording.say_who),
    "friend": (_closed(PEOPLE), wording.say_who),
    "item": (_closed(range(len(wording.NOUNS["en"]))), wording.say_item),
    "food": (_closed(range(len(wording.FOOD))), wording.say_food),
    "drink": (_closed(range(len(wording.DRINKS))), wording.say_drink),
    "country": (_closed(wording.COUNTRIES), wording.say_country),
    "language": (_closed(wording.LANGUAGES), wording.say_language),
    "weekday": (_closed(range(7)), wording.say_weekday),
    "month": (_closed(range(1, 13)), wording.say_month),
}


# ---- sentences


class Template(NamedTuple):
    english: str
    slots: tuple[str, ...]
    """Names of the slots, such as "country2"."""
    texts: dict[str, tuple[Any, ...]]
    """For each language the pieces of the sentence: a text, or (index of the slot, function that words it, form)."""


class Example(NamedTuple):
    source: str
    target: str
    held_out: tuple[str, ...]
    """Keys of the values in the sentence; all belong to its split."""


@cache
def templates() -> dict[str, list[Template]]:
    """All templates, by topic: the key of `TEMPLATES` -> list."""
    return {kind: [_template(columns) for columns in _alternatives(rows)] for kind, rows in TEMPLATES.items()}


def _alternatives(rows: str) -> Iterator[list[str]]:
    for row in re.sub(r"\n +", " ", rows.strip()).split("\n"):
        groups = [group.split("/") for group in re.findall(r"\(([^()]*)\)", row)] or [[""]]
        for chosen in zip(*groups, strict=True):
            choices = iter(chosen)
            yield re.sub(r"\([^()]*\)", lambda _, choices=choices: next(choices), row).split(" | ")


def _template(columns: list[str]) -> Template:
    slots = tuple(dict.fromkeys(re.findall(r"{(\w+)", columns[0])))
    texts = {}
    for language, text in zip(wording.LOCALES, columns, strict=True):
        pieces: list[Any] = re.split(r"({\w+(?::\w+)?})", text)
        for i in range(1, len(pieces), 2):
            name, _, form = pieces[i][1:-1].partition(":")
            pieces[i] = (slots.index(name), KINDS[name.rstrip("2")][1], form)
        texts[language] = tuple(pieces)
    return Template(columns[0], slots, texts)


def _say(template: Template, values: list[Value], language: str, words: bool) -> str:
    text = "".join(
        piece if isinstance(piece, str) else piece[1](values[piece[0]], language, piece[2], words)
        for piece in template.texts[language]
    )
    if language == "fr":
        text = re.sub(r"\bde (?=une?\b)", "d'", text)
    return text[0].upper() + text[1:]


def split_of(key: str) -> str:
    """The split of a value, by the hash of its key: 10 % are in "test", 5 % in "dev", the others in "train"."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32
    return "test" if share < 0.1 else "dev" if share < 0.15 else "train"


def examples(split: str, languages: tuple[str, str], seed: int = 0) -> Iterator[Example]:
    """Yield sentence pairs of "train", "dev" or "test" without end, each with the keys of its values.

    A language pair and its reverse have the same sentences. Raises `UserError` for languages that are not `SUPPORTED`.
    """
    _check(languages)
    other = next(language for language in languages if language != "en")
    rng = random.Random(f"phrases {seed} {split} {other}")
    kinds = list(templates().values())
    while True:
        template = _pick(rng, _pick(rng, kinds))
        values, keys = [], []
        for slot in template.slots:
            draw = KINDS[slot.rstrip("2")][0]
            value, key = draw(rng)
            while value in values or (key and split_of(key) != split):
                value, key = draw(rng)
            values.append(value)
            keys += [key] if key else []
            if slot in ("time2", "day2"):  # from ... to ...
                values[-2:] = sorted(values[-2:])
        if not keys:
            keys = [f"{template.english} {values}"]
            if split_of(keys[0]) != split:
                continue
        figures = rng.random() < 0.5  # whether English has figures and the other language words, or the reverse
        said = {"en": _say(template, values, "en", not figures), other: _say(template, values, other, figures)}
        yield Example(said[languages[0]], said[languages[1]], tuple(keys))


def pairs(split: str, languages: tuple[str, str], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (source, target) sentences of "train", "dev" or "test" without end: a pure function of the arguments."""
    return ((example.source, example.target) for example in examples(split, languages, seed))


def _check(languages: tuple[str, str]) -> None:
    if tuple(languages) not in SUPPORTED:
        known = ", ".join("-".join(pair) for pair in SUPPORTED)
        raise UserError(
            f"data.languages = {'-'.join(languages)}: the generated phrases support {known}; choose one of these, "
            "or set data.corpus to 'text' and name your own files"
        )


# ---- files


def write(folder: Path, languages: tuple[str, str], train_pairs: int, seed: int = 0) -> Corpora:
    """Write `train.en`, `train.de`, `dev.en`, ... to a sealed folder in `folder`: `train_pairs`, 500 and 1,000 pairs.

    No source sentence is repeated within the development or the test set, and neither set depends on `train_pairs`. The
    name of the sealed folder ends in a hash of all that the text depends on; an existing folder is used again. Raises
    `UserError` for languages that are not `SUPPORTED`.
    """
    _check(languages)
    made_of = {
        "version": VERSION,
        "languages": list(languages),
        "seed": seed,
        "pairs": {"train": train_pairs, "dev": DEV_PAIRS, "test": TEST_PAIRS},
        "made with": {name: importlib.metadata.version(name) for name in ("babel", "num2words")},
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(folder) / f"{'-'.join(languages)}-{train_pairs}-{key}"

    def make(new: Path) -> None:
        logger.info("generating %s %s pairs into %s", f"{train_pairs:,}", "-".join(languages), folder)
        for split, count in made_of["pairs"].items():
            made = pairs(split, languages, seed)
            if split != "train":
                made = _distinct(made)
            for language, lines in zip(languages, zip(*islice(made, count), strict=True), strict=True):
                write_file(new / f"{split}.{language}", "".join(f"{line}\n" for line in lines).encode())
        write_file(new / "phrases.json", (json.dumps(made_of, indent=2) + "\n").encode())

    def read(path: Path) -> dict[str, Parallel]:
        names = {split: [f"{split}.{language}" for language in languages] for split in made_of["pairs"]}
        return {split: Parallel(*(str(path / name) for name in both)) for split, both in names.items()}

    corpora = cached(folder, make, read, "the generated phrases")
    return Corpora((corpora["train"],), corpora["dev"], corpora["test"], "phrases dev", "phrases test")


def _distinct(made: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for pair in made:
        if pair[0] not in seen:
            seen.add(pair[0])
            yield pair
