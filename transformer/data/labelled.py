"""Read labelled texts: rows of .tsv, .csv and .jsonl files, and tagged words of .conll files.

A .tsv has no quoting, a .csv has that of RFC 4180. Both have a header with the names of the columns, unless columns are
given by their numbers. A .conll has a word and its tag a line, and blank lines between sentences. Files may be
compressed. A line break within a text becomes a space. Words are separated by ASCII spaces and tabs alone, so a
no-break space is part of a word.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from transformer.config import UserError, whole_number
from transformer.data.compression import uncompressed_name
from transformer.data.doubts import (
    NAME_IT_SO,
    QuotedFields,
    doubt_single_words,
    is_list,
    list_hint,
    refuse_other_columns,
)
from transformer.data.foreign import piped
from transformer.data.text import RepeatedKey, field_names, read_json, records, value_at
from transformer.streams import plain

log = logging.getLogger("transformer")

_SHOWN = 12  # columns that an error lists
_CONLL = (".conll", ".conllu", ".iob", ".iob2", ".bio")
_JSON = (".jsonl", ".ndjson", ".json")
_FEW = 10  # so few rows may have all labels but one alike
_WITHOUT_RANGES = "grep -v '^[0-9]*[-.]'"  # lines of CoNLL-U without those of several words and of no word
_CONLL_U = 10  # columns: a number, the word, its lemma, ...
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ID = re.compile(r"[0-9]+([-.][0-9]+)?")
_FIELD_LIMIT = 2**31 - 1  # characters of a field of a .csv
_GAP = re.compile(r"(?:[ \t\n]|\r\n)+")
_AROUND = " \t\n"  # of a word; others, such as a form feed, are part of it in each kind of file
_COMMENT = re.compile(r"#\s.*=|#\s*(newdoc|newpar|begin document|end document|https?://)")


class Example(NamedTuple):
    """A text, or a pair of texts, and its label."""

    text: str | tuple[str, ...]
    """The text; of tags, its words."""
    second: str | None
    label: str | tuple[str, ...]
    """The label; of tags, that of each word."""
    file: int
    """Index of the file among those that were read."""
    line: int
    """Number of its first line, from 1."""


class Columns(NamedTuple):
    """Where texts and labels stand: names of columns or fields, or numbers of columns from 1."""

    text: str
    second: str | None
    label: str


class Cell(NamedTuple):
    """The value of a column in one row."""

    column: str
    """The field of the config that names the column: "text", "second" or "label"."""
    value: Any
    where: str
    """File and line, for messages."""

    def error(self, what: str) -> UserError:
        return UserError(f"{self.where}: the {self.column} {what}")


Row = tuple[int, dict[str, Cell]]
"""The number of the first line of a row, and its cells by the names of `Columns`."""


def read_examples(
    paths: Sequence[str], columns: Columns, kind: str, digests: dict[str, str] | None = None
) -> list[Example]:
    """The labelled texts of files, in order. `kind`: that of the labels (see `LabelledConfig`).

    The ending of a file's name decides how it is read; another ending than those above means .tsv. `digests`: see
    `read_lines`. Raises `UserError` for a file without any; and, with file and line, for a column that is missing, a
    row with another number of columns, an empty text or label, a label that is no number where numbers are asked for,
    words that are more or fewer than their tags, and a tag with other white space in it than that between tags.
    """
    found = []
    for number, path in enumerate(paths):
        name = uncompressed_name(path)
        if name.endswith(_CONLL):
            if kind != "tags":
                raise UserError(f"{path}: holds tagged words; set data.kind = 'tags', or give a .tsv, .csv or .jsonl")
            sentences = list(_conll(path, digests))
            refuse_other_columns(path, sentences)
            rows = [Example(words, None, tags, number, line) for line, words, tags in sentences]
        else:
            read = _json_rows if name.endswith(_JSON) else _csv_rows if name.endswith(".csv") else _tsv_rows
            rows = [
                _example(cells, kind, columns.second is not None, number, line)
                for line, cells in read(path, columns, digests)
            ]
            if kind == "tags" and read is not _json_rows:
                doubt_single_words(path, [row.text for row in rows], [row.line for row in rows])
        if not rows:
            raise UserError(f"{path}: holds no labelled text; leave it out, or give another file")
        found += rows
    return found


def _example(cells: Mapping[str, Cell], kind: str, pairs: bool, file: int, line: int) -> Example:
    """The example in a row of a table."""
    second = _string(cells["second"]) if pairs else None
    text, label = (_words if kind == "tags" else _string)(cells["text"]), _LABELS[kind](cells["label"])
    if kind == "tags" and len(text) != len(label):
        raise cells["label"].error(
            f"has {len(label)} tags for {len(text)} words; give a tag for each word, with spaces between them"
        )
    return Example(text, second, label, file, line)


def words_in(text: str) -> list[str]:
    """The words of a text that is to be tagged: what stands between ASCII spaces, tabs and line breaks."""
    return [word for word in _GAP.split(text) if word]


def bare(word: str) -> str:
    """A word that is to be tagged, without the ASCII white space around it; empty if there is nothing else."""
    return word.replace("\r\n", "\n").strip(_AROUND)


# ---- Rows of files ---------------------------------------------------------------------------------------------------


def _tsv_rows(path: str, columns: Columns, digests: dict[str, str] | None) -> Iterator[Row]:
    quoted = QuotedFields(path)
    lines = enumerate(records(path, digests), 1)
    return _table(path, ((number, quoted.seen(number, line.split("\t"))) for number, line in lines if line), columns)


def _csv_rows(path: str, columns: Columns, digests: dict[str, str] | None) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_LIMIT)
    lines = records(path, digests)
    head = next(lines, "")
    reader = csv.reader((f"{line}\n" for line in chain((head,), lines)), strict=True, skipinitialspace=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                forms = (_FORMS[mark] for mark in "\t;|" if first == 1 and mark in head)
                raise UserError(
                    f"{path}:{first}: not a row of a .csv ({error}); {next(forms, 'correct its quotes')}"
                ) from None
            if cells is None:
                return
            if cells:
                yield first, cells

    return _table(path, rows(), columns)


def _table(path: str, rows: Iterator[tuple[int, list[str]]], columns: Columns) -> Iterator[Row]:
    """The cells of a table. `rows`: the number of the first line and the cells of each row."""
    first = next(rows, None)
    if first is None:
        return
    names = {name: column for name, column in columns._asdict().items() if column is not None}
    numbered, width = bool(whole_number(columns.text)), len(first[1])
    places = {name: _place(path, first, name, column, numbered) for name, column in names.items()}
    if numbered and all(first[1][at].strip().lower() in _USUAL for at in places.values()):
        what = "line %d of %s looks like a header, but is read as a text, as columns have numbers; name the columns"
        log.warning(what, first[0], plain(path))
    count = alike = 0  # rows, and those with the label of the first one
    for line, cells in chain([first], rows) if numbered else rows:
        if len(cells) != width:
            what = f"line {first[0]} has {width}" if numbered else f"the header has {width}"
            few = "too few columns" if len(cells) < width else "too many columns"
            raise UserError(f"{path}:{line}: {few}: {len(cells)}, but {what}; {_STRAY}")
        if not numbered and cells == first[1]:
            raise UserError(f"{path}:{line}: the header again, as in files that were joined; remove this line")
        count, alike = count + 1, alike + (cells[places["label"]] == first[1][places["label"]])
        yield line, {name: Cell(name, cells[at], f"{path}:{line}") for name, at in places.items()}
    if numbered and count > _FEW and alike == 1 and _NAME.fullmatch(label := first[1][places["label"]]):
        what = (
            "line %d of %s may be a header, but is read as a text: no other has its label, %s; if so, name the columns"
        )
        log.warning(what, first[0], plain(path), plain(label))


_NAME = re.compile(r"[^\W\d]\w*")  # such as a column has
_USUAL = ("text", "second", "label", "sentence", "sentence1", "sentence2", "labels", "tags")
"""Usual names of columns."""
_STRAY = "add or remove a tab (in a .csv: a comma, or quotes around a text with commas)"


_FORMS = {
    "{": "if it is .jsonl, name it so",
    "\t": "if tabs separate columns, name it .tsv",
    ",": "if it is .csv, name it so",
    ";": "separate columns with tabs in a .tsv, with commas in a .csv",
    "|": "separate columns with tabs in a .tsv, with commas in a .csv",
}
"""A character of a header without columns -> what to do."""


def _place(path: str, first: tuple[int, list[str]], name: str, column: str, numbered: bool) -> int:
    """The index of a column, by its name in the header or by its number."""
    line, cells = first
    shown = ", ".join(repr(cell[:40]) for cell in cells[:_SHOWN]) + (", ..." if len(cells) > _SHOWN else "")
    form = next((_FORMS[mark] for mark in _FORMS if mark in cells[0]), "") if len(cells) == 1 else ""
    if numbered:
        if (number := whole_number(column)) <= len(cells):
            return number - 1
        form = f"; {form}" if form else ""
        raise UserError(f"{path}:{line}: no column {number}, as data.{name} says: it has {len(cells)}: {shown}{form}")
    if cells.count(column) == 1:
        return cells.index(column)
    if column in cells:
        raise UserError(f"{path}:{line}: the header has the column {column!r} twice; rename one of them")
    if f'"{column}"' in cells:
        raise UserError(
            f"{path}:{line}: the header is quoted as in a .csv; write such a file with commas and name it so"
        )
    if form:
        raise UserError(f"{path}:{line}: a single column, {shown}; {form}")
    raise UserError(
        f"{path}:{line}: the header has no column {column!r}, only {shown}; name it with --data.{name}, or, if this is "
        "no header, give the numbers of the columns, such as --data.label 1 --data.text 2; if each line is a word and "
        f"its tag, {NAME_IT_SO}"
    )


def _json_rows(path: str, columns: Columns, digests: dict[str, str] | None) -> Iterator[Row]:
    names = {name: column for name, column in columns._asdict().items() if column is not None}
    for number, line in enumerate(records(path, digests), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except RepeatedKey as error:
            raise UserError(f"{where}: {error}") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object; each line must be one{list_hint(line)}")
        yield number, {name: Cell(name, _value(row, name, column, where), where) for name, column in names.items()}


def _value(row: Mapping[str, Any], name: str, column: str, where: str) -> Any:
    try:
        return value_at(dict(row), column)
    except KeyError:
        shown = ", ".join(json.dumps(field) for _, field in zip(range(_SHOWN), field_names(dict(row)), strict=False))
        raise UserError(
            f"{where}: no field {column!r} (it has {shown or 'none'}); name it with --data.{name}"
        ) from None


def _conll(path: str, digests: dict[str, str] | None) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """The first line, the words and the tags of each sentence. Comments before a sentence are left out, as those of
    CoNLL-U (# text = …), MultiCoNER (# id … domain=…), CoNLL-2012 (#begin document …) and GermEval (# http://…)."""
    words: list[str] = []
    tags: list[str] = []
    begins, first, width = 0, 0, 0  # the first line of the sentence; the first with a word, and its number of columns
    for number, line in enumerate(records(path, digests), 1):
        parts = words_in(line)
        if not words and _COMMENT.match(line):
            continue
        if not parts or parts[0] == "-DOCSTART-":
            if words:
                yield begins, tuple(words), tuple(tags)
            words, tags = [], []
            continue
        if len(parts) == 1:
            raise UserError(f"{path}:{number}: a word without a tag; each line must hold a word, a space and its tag")
        if not first:
            first, width = number, len(parts)
            if width == _CONLL_U and _ID.fullmatch(parts[0]):
                raise UserError(
                    f"{path}:{number}: numbered words with ten columns, as in CoNLL-U; keep words and one tag each: "
                    f"{piped(_WITHOUT_RANGES, path)} | cut -f 2,4 > NEW.conll (4 is UPOS)"
                )
        if len(parts) != width:
            few = "too few columns" if len(parts) < width else "too many columns"
            raise UserError(
                f"{path}:{number}: {few}: {len(parts)}, but line {first} has {width}; give each line the same number, "
                "with spaces or tabs between them"
            )
        begins = begins if words else number
        words.append(parts[0])
        tags += _without_space(Cell("label", parts[-1], f"{path}:{number}"), parts[-1:])
    if words:
        yield begins, tuple(words), tuple(tags)


# ---- Values ----------------------------------------------------------------------------------------------------------


def _string(cell: Cell, blank: str | None = None) -> str:
    """The text in a cell, with spaces for line breaks. Raises `UserError` if it is empty, or only of the characters
    `blank` (default: all white space)."""
    if not isinstance(cell.value, str):
        fix = "; give the names of tags, not their numbers" if (cell.column, type(cell.value)) == ("label", int) else ""
        raise cell.error(f"must be a string, not {json.dumps(cell.value)[:40]}{fix}")
    try:
        cell.value.encode()
    except UnicodeEncodeError:
        raise cell.error("holds half a surrogate pair, which is not text; correct it") from None
    text = cell.value.replace("\r\n", " ").replace("\n", " ")
    if not text.strip(blank):
        raise cell.error("is empty; fill it, or remove the row")
    return text


def _words(cell: Cell) -> tuple[str, ...]:
    """The words in a cell: a list of strings, or words with spaces between them."""
    if not isinstance(cell.value, list):
        return tuple(words_in(_string(cell)))
    words = tuple(bare(_string(cell._replace(value=word), _AROUND)) for word in cell.value)
    if not words:
        raise cell.error("is an empty list; fill it, or remove the row")
    return words


def _tags(cell: Cell) -> tuple[str, ...]:
    """The tags in a cell, as `_words` finds them. Raises `UserError` for a list that a program wrote as text."""
    if isinstance(cell.value, str) and is_list(cell.value.strip()):
        raise cell.error(
            "is a list that was written as text; write such a file as .jsonl (pandas: to_json(NAME, orient='records', "
            "lines=True)), or words and tags with spaces between them"
        )
    return _without_space(cell, _words(cell))


def _without_space(cell: Cell, tags: Sequence[str]) -> tuple[str, ...]:
    """These tags. Raises `UserError` for one with white space in it: predictions are written with spaces between."""
    for tag in tags:
        if any(map(str.isspace, tag)):
            raise cell.error(f"has a space, a no-break space or the like in {json.dumps(tag)[:40]}; replace it by '_'")
    return tuple(tags)


def _name(cell: Cell) -> str:
    """The name of a class: a string, or a whole number or a truth value of a .jsonl."""
    value = cell.value
    if isinstance(value, bool) or type(value) is int:
        return json.dumps(value)
    if not isinstance(value, str):
        raise cell.error(f"must be a string or a whole number, not {json.dumps(value)[:40]}")
    if "\t" in (name := _string(cell).strip()):
        raise cell.error("has a tab in it, which separates the columns of predictions; replace it by a space")
    return name


def _number(cell: Cell) -> str:
    """A number, as text."""
    value = cell.value
    text = json.dumps(value) if type(value) in (int, float) else _string(cell).strip()
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise cell.error(f"is {text[:40]!r}, not a number such as -2.5")
    return text


_LABELS: dict[str, Callable[[Cell], Any]] = {"classes": _name, "regression": _number, "tags": _tags}
