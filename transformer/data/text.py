"""Parallel text on disk: lines of plain or gzipped files, and pairs of two such files, a .tsv or a .jsonl.

A line ends at "\\n" and nowhere else: U+0085, U+2028, "\\r" or a form feed inside a line are text, so that every file
has as many lines here as `wc -l` counts. Files are UTF-8; a byte order mark and the "\\r" of Windows line ends are
not text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformer.config import UserError


class Parallel(NamedTuple):
    """One parallel corpus on disk."""

    source: str
    """Path of the source side."""
    target: str | None = None
    """Path of the target side; None: `source` is a .tsv or .jsonl that holds both."""
    weight: float = 1.0
    """How often each pair is seen in an epoch."""


class Corpora(NamedTuple):
    """Everything one run reads, as plain files."""

    train: tuple[Parallel, ...]
    dev: Parallel | None
    test: Parallel | None
    dev_name: str
    """What the development set is called in logs and results, e.g. "newstest2013"; "" without one."""
    test_name: str


def form(path: str | Path) -> str:
    """Kind of file: "tsv" or "jsonl" holds both sides, "text" (any other) one; a final .gz does not count."""
    name = str(path).lower().removesuffix(".gz")
    return next((kind for kind in ("tsv", "jsonl") if name.endswith("." + kind)), "text")


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a plain or .gz file, without line ends; a last line without "\\n" counts.

    Raises `UserError` for a missing or damaged file, and naming the line that is not UTF-8.
    """
    opener = gzip.open if str(path).lower().endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: byte 0x{line[error.start]:02x} is not valid UTF-8; "
                        "convert the file first, e.g. with iconv -f latin1 -t utf-8"
                    ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"damaged or not a gzip file ({error}); fetch or compress it again"
        raise UserError(f"{path}:{number + 1}: {reason}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def count_lines(path: str | Path) -> int:
    """How many lines `read_lines` finds in a file; raises as it does."""
    opener = gzip.open if str(path).lower().endswith(".gz") else open
    count, last = 0, b"\n"
    try:
        with opener(path, "rb") as file:
            while block := file.read(1 << 20):
                count, last = count + block.count(b"\n"), block[-1:]
    except (OSError, EOFError, zlib.error):
        return sum(1 for _ in read_lines(path))  # which tells what is wrong
    return count + (last != b"\n")


def read_pairs(parallel: Parallel, fields: tuple[str, str] = ("source", "target")) -> Iterator[tuple[str, str]]:
    """The (source, target) lines of a corpus.

    Two files are read side by side and must have equally many lines. A .tsv holds two columns, source and target,
    without quoting; a .jsonl one object a line with the two `fields`, in which a line break becomes a space, because a
    sentence is one line everywhere else. Raises `UserError` naming file and line.
    """
    kind = form(parallel.source)
    if kind == "text" and parallel.target is None:
        raise UserError(f"{parallel.source}: no target given; name its file of translations, or use a .tsv or .jsonl")
    if kind != "text" and parallel.target is not None:
        raise UserError(f"{parallel.source}: holds both sides, so leave out its target {parallel.target}")
    if kind == "text" and form(parallel.target) != "text":
        raise UserError(f"{parallel.target}: holds both sides; give it as the source, without a target")
    return {"text": _text, "tsv": _tsv, "jsonl": _jsonl}[kind](parallel, fields)


def _text(parallel: Parallel, fields: tuple[str, str]) -> Iterator[tuple[str, str]]:
    sources, targets = read_lines(parallel.source), read_lines(parallel.target)
    count = 0
    while True:
        source, target = next(sources, None), next(targets, None)
        if source is None or target is None:
            break
        count += 1
        yield source, target
    n_source = count + (source is not None) + sum(1 for _ in sources)
    n_target = count + (target is not None) + sum(1 for _ in targets)
    if n_source != n_target:
        raise UserError(
            f"{parallel.source} has {n_source:,} lines but {parallel.target} has {n_target:,}; "
            "line n of one must be the translation of line n of the other"
        )


def _tsv(parallel: Parallel, fields: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(parallel.source), 1):
        columns = line.split("\t")
        if len(columns) == 1:
            raise UserError(f"{parallel.source}:{number}: no tab; each line must hold source, a tab, target")
        if len(columns) > 2:
            raise UserError(
                f"{parallel.source}:{number}: {len(columns)} columns, but each line must hold source, a tab, target; "
                "remove a stray tab, or cut out the two that are meant, such as: cut -f2,3 OLD.tsv > NEW.tsv"
            )
        yield columns[0], columns[1]


def _jsonl(parallel: Parallel, fields: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(parallel.source), 1):
        where = f"{parallel.source}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # not only JSONDecodeError: Python takes no integer of 5,000 digits
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object; each line must be one, with '{fields[0]}' and '{fields[1]}'")
        for field in fields:
            if field not in row:
                named = ", ".join(name if name.isprintable() else json.dumps(name) for name in row)
                raise UserError(f"{where}: no field '{field}' (it has {named or 'none'}); set data.fields")
            if not isinstance(row[field], str):
                raise UserError(f"{where}: field '{field}' must be a string, not {json.dumps(row[field])[:40]}")
            if any("\ud800" <= char <= "\udfff" for char in row[field]):
                raise UserError(f"{where}: field '{field}' holds half a surrogate pair, which is not text; correct it")
        source, target = (row[field].replace("\r\n", " ").replace("\n", " ") for field in fields)
        yield source, target


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def fingerprint(parallel: Parallel) -> str:
    """Hex digest of a corpus's content: the bytes of its files and how they are read, not where they lie."""
    parts = [
        (form(path), str(path).lower().endswith(".gz"), sha256(path))
        for path in (parallel.source, parallel.target)
        if path is not None
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
