"""Check that each figure quoted in a Markdown file stands in a row of `results/*.jsonl`.

A comment before a paragraph, list or table cites the rows that its figures come from; it is not shown:

    <!-- rows: results/decoding.jsonl part=decode device~EPYC by system dtype columns batch -->

`field=value` selects rows by a field (`null`: the field is missing), `field~text` by a part of it; `;` separates
citations. In a table, `by` names the fields that the first cells hold, and `columns` the field whose value is the text
of a column's header or its last number: each cell is then compared with its row alone. Such a comment inside a line is
for this line. `<!-- not measured -->` marks a paragraph whose figures are no measurements.

A figure may also be the mean or the standard deviation of a field over the rows, or their number. It may be rounded as
printed, and have a unit of `UNITS`. Text in code style, versions such as 0.10.2 and numbers inside words don't count.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Groups = Sequence[Sequence[Row]]

ROOT = Path(__file__).resolve().parents[1]
# What a number with this unit may be multiplied by to give the value in a row.
UNITS = {
    **{"%": (0.01, 1), "GiB": (1024, 1), "GB": (1000, 1), "million": (1e6, 1)},
    **{"TFLOP/s": (1e12, 1), "GFLOP/s": (1e9, 1), "TB/s": (1e12, 1)},
    **{"ms": (1, 1e-3), "min": (60, 1), "minutes": (60, 1), "h": (3600, 1), "hours": (3600, 1)},
    **dict.fromkeys(("s", "MB", "MiB", "BLEU", "chrF", "times", "packages", "pieces/s", "target pieces/s"), (1,)),
}
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_FIGURE = re.compile(
    rf"(?<![\w.,/:+=~^-])({_NUMBER})(?![\w:+]|[.,/-]\d|%\w)(?:\s*({'|'.join(map(re.escape, UNITS))})(?!\w))?"
)
_CITATION = re.compile(r"<!-- (rows:(?P<citation>.*)|(?P<none>not measured)) -->$")
_OF_LINE = re.compile(r"<!-- rows:(.*?) -->")
_UNQUOTED = {"commit", "recorded_in", "sha256", "signature", "dev_bleu_signature"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number as printed: its text, value, decimals and unit ("" without one)."""

    text: str
    value: float
    decimals: int
    unit: str

    def is_in(self, values: Sequence[float]) -> bool:
        """Whether a value, rounded as printed, is this figure."""
        half = 0.5 * 10**-self.decimals * (1 + 1e-6)
        return any(abs(value / scale - self.value) <= half for scale in UNITS.get(self.unit, (1,)) for value in values)


@dataclasses.dataclass(frozen=True)
class Cited:
    """Rows cited by a comment; `by` and `columns`: see the module's docstring."""

    rows: Sequence[Row]
    by: tuple[str, ...] = ()
    columns: str = ""


def figures(text: str) -> list[Figure]:
    """The figures in a text, dates left out."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|\d{4}-\d\d-\d\d", " ", text, flags=re.DOTALL)
    text = re.sub(r"\b(\d+):(\d\d)\b(?: min)?", lambda m: f" {60 * int(m[1]) + int(m[2])} s ", text)
    text = re.sub(r"(?<=\d)[-\u2013](?=\d)", " to ", text.replace("**", ""))
    found = []
    for number, unit in _FIGURE.findall(text):
        decimals = len(number.partition(".")[2])
        found.append(Figure(f"{number} {unit}".strip(), float(number.replace(",", "")), decimals, unit))
    return found


def values(value: Any, field: str = "") -> Iterator[float]:
    """All numbers in a row or in a part of it, those in texts included."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from values(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from values(inner, field)
    elif isinstance(value, str) and field not in _UNQUOTED:
        yield from (figure.value for figure in figures(value))
        yield from (float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _summaries(rows: Sequence[Row]) -> Iterator[float]:
    """The number of rows; mean and standard deviation of each field that holds numbers."""
    yield len(rows)
    for field in {field for row in rows for field in row}:
        numbers = [row[field] for row in rows if type(row.get(field)) in (int, float)]
        if len(numbers) > 1:
            yield statistics.mean(numbers)
            yield statistics.stdev(numbers)


@cache
def read(path: Path) -> tuple[Row, ...]:
    """The rows of a file. Raises `ValueError` with file and line for anything that is not a JSON object."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}:{number}: not a JSON object")
        rows.append(row)
    return tuple(rows)


def all_rows(root: Path = ROOT) -> dict[str, tuple[Row, ...]]:
    """File name -> rows, of all result files."""
    return {path.name: read(path) for path in sorted((root / "results").glob("*.jsonl"))}


def selected(row: Row, condition: str) -> bool:
    """Whether a row has what `field=value` or `field~text` asks."""
    field, sign, wanted = re.match(r"(\w+)([=~])(.*)", condition).groups()
    if wanted == "null":
        return row.get(field) is None
    value = row.get(field)
    text = value if isinstance(value, str) else json.dumps(value)
    return text == wanted if sign == "=" else wanted in text


def cited(text: str, root: Path) -> list[Cited]:
    """The citations in a comment. Raises `ValueError` for a file that is missing, a word not known, or no rows."""
    found = []
    for one in text.split(";"):
        files, conditions = [], []
        named: dict[str, list[str]] = {"by": [], "columns": []}
        words = files
        for word in one.split():
            if word in named:
                words = named[word]
            elif re.match(r"\w+[=~]", word):
                conditions.append(word)
            else:
                words.append(word)
        for file in files:
            if not (root / file).is_file():
                raise ValueError(f"there is no file {file}")
        rows = [row for file in files for row in read(root / file) if all(selected(row, one) for one in conditions)]
        if not rows:
            raise ValueError(f"no row has {one.strip()}")
        found.append(Cited(rows, tuple(named["by"]), "".join(named["columns"])))
    return found


# ---- A Markdown file ------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Block:
    """A paragraph, list or table: its lines, the number of the first, and the comment that cites its rows."""

    line: int
    lines: list[str]
    citation: str | None = None
    measured: bool = True

    @property
    def is_table(self) -> bool:
        return len(self.lines) > 1 and re.match(r"\|?[\s|:-]+$", self.lines[1]) is not None


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a Markdown file; headings, code, pictures and HTML left out."""
    lines: list[str] = []
    start, comment, fenced = 0, None, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.startswith("```"):
            fenced = not fenced
        elif found := _CITATION.match(line):
            comment = found
        elif line.strip() and not (fenced or line.startswith(("#", "![", "<")) or (not lines and line[:4] == "    ")):
            start = start if lines else number
            lines.append(line)
            continue
        if lines:
            yield Block(start, lines, comment and comment["citation"], measured=not (comment and comment["none"]))
            lines, comment = [], None


def _same(printed: str, row: Row, by: Sequence[str]) -> bool:
    """Whether cells hold the values of a row's fields; upper case, blanks and marks don't count."""
    texts = (row.get(field) for field in by)
    wanted = "".join(text if isinstance(text, str) else json.dumps(text) for text in texts)
    return re.sub(r"[\W_]", "", printed).lower() == re.sub(r"[\W_]", "", wanted).lower()


def _of_line(cells: Sequence[str], cited: Cited) -> tuple[int, Sequence[Row]]:
    """How many first cells hold the values of `cited.by`, and the rows that have these."""
    for width in range(1, len(cited.by) + 1):  # one cell may hold several fields: `ours float32`
        if rows := [row for row in cited.rows if _same("".join(cells[:width]), row, cited.by)]:
            return width, rows
    if cited.by:
        raise ValueError(f"no row has {' and '.join(cited.by)} = {cells[0]}")
    return 0, cited.rows


def _table(block: Block, citations: Sequence[Cited], root: Path) -> Iterator[tuple[int, Figure, Groups]]:
    """(line, figure, rows to find it in, by citation) of each figure in a table's body."""
    header, _, *body = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.lines)
    for number, (text, cells) in enumerate(zip(block.lines[2:], body, strict=True), block.line + 2):
        of_line = cited(found[1], root) if (found := _OF_LINE.search(text)) else citations
        widths, groups = zip(*(_of_line(cells, one) for one in of_line), strict=True)
        for cell, title in zip(cells[max(widths) :], header[max(widths) :], strict=False):
            of_cell = [
                [row for row in rows if one.columns and _is_column(title, row, one.columns)]
                for one, rows in zip(of_line, groups, strict=True)
            ]
            chosen = of_cell if any(of_cell) else groups
            yield from ((number, figure, chosen) for figure in figures(cell))


def _is_column(title: str, row: Row, field: str) -> bool:
    """Whether a column's title is the value of a row's field, or ends with this number."""
    numbers = figures(title)
    return _same(title, row, (field,)) or bool(numbers and numbers[-1].value == row.get(field))


def _counts(block: Block, figure: Figure, strict: bool, cites: bool) -> bool:
    """Whether a figure must stand in a row: with `strict` all in tables and in paragraphs that cite rows."""
    if strict and (block.is_table or cites):
        return True
    return bool(figure.unit) or (figure.decimals > 0 and (strict or block.is_table))


def _found(block: Block, citations: Sequence[Cited], root: Path) -> Iterator[tuple[int, Figure, Groups]]:
    if block.is_table:
        yield from _table(block, citations, root)
    else:
        groups = [one.rows for one in citations]
        yield from ((block.line, figure, groups) for figure in figures("\n".join(block.lines)))


def problems(path: Path, *, strict: bool, root: Path = ROOT) -> Iterator[str]:
    """A line for each figure of a Markdown file that stands in no row.

    With `strict` a table with figures, and a paragraph with a unit or decimals, must cite rows. Without it, those that
    cite none are compared with all rows, and only figures with a unit, and decimals in tables, count.
    """
    everything = [Cited(rows) for rows in all_rows(root).values()]
    for block in blocks(path.read_text(encoding="utf-8")):
        cites = block.citation is not None or any(map(_OF_LINE.search, block.lines))
        if not block.measured:
            continue
        try:
            citations = cited(block.citation, root) if block.citation is not None else everything
            found = [one for one in _found(block, citations, root) if _counts(block, one[1], strict, cites)]
        except ValueError as error:
            yield f"{path.name}:{block.line}: {error}"
            continue
        if found and strict and not cites:
            yield f"{path.name}:{block.line}: cites no rows: put <!-- rows: results/X.jsonl --> before it"
            continue
        for line, figure, groups in found:
            known = [x for rows in groups for x in itertools.chain(values(list(rows)), _summaries(rows))]
            if not figure.is_in(known):
                yield f"{path.name}:{line}: {figure.text} is in none of the {sum(map(len, groups))} rows cited"
