"""Read parallel text: lines of a plain file, a compressed file or an SGML set; pairs of two such files, of a .tsv or of
a .jsonl.

A line ends at "\\n" only. U+0085, U+2028, "\\r" and form feeds inside a line are text, so that the number of lines is
the one that `wc -l` counts. Files are UTF-8; a byte order mark and the "\\r" of Windows line ends are removed. A NUL is
an ordinary character.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import UserError
from transformer.data.compression import Damaged, uncompressed_name
from transformer.data.doubts import QuotedFields, list_hint, refuse_csv
from transformer.data.foreign import not_utf8, piped
from transformer.data.opening import open_text
from transformer.data.sgml import Segment, compare
from transformer.files import unreadable

log = logging.getLogger("transformer")

_SHOWN = 12  # fields that an error lists
_MAX_SHOWN = 10  # unknown characters that a warning lists
_RETURNS = r"tr '\r' '\n'"
_BOTH_SIDES = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


class Parallel(NamedTuple):
    """One parallel corpus on disk."""

    source: str
    """Path of the source side."""
    target: str | None = None
    """Path of the target side. None: `source` is a .tsv or .jsonl with both sides."""
    weight: float = 1.0
    """How often an epoch has each pair."""


class Corpora(NamedTuple):
    """The training, development and test text of a run."""

    train: tuple[Parallel, ...]
    dev: Parallel | None
    test: Parallel | None
    dev_name: str
    """Name of the development set in logs and results, e.g. "newstest2013"; "" without one."""
    test_name: str


def file_kind(path: str | Path) -> str:
    """The kind of a file by its name: "tsv" or "jsonl" (both sides), or "text" (one side, any other name)."""
    name = uncompressed_name(path)
    return next((kind for ending, kind in _BOTH_SIDES.items() if name.endswith(ending)), "text")


def read_lines(
    path: str | Path, segments: list[Segment] | None = None, digests: dict[str, str] | None = None
) -> Iterator[str]:
    """Yield the lines of a text without line ends. A last line without "\\n" counts. The file is read once.

    The lines of an SGML set are its segments; they are also appended to `segments` before the first line. After the
    last line, `digests[path]` is set to the sha256 of the bytes that were read.
    Raises `UserError` for a file that is missing, damaged, not text or not UTF-8; the message names the line.
    """
    number, utf8 = 0, False
    try:
        with open_text(path) as file:
            if segments is not None and file.segments is not None:
                segments.extend(file.segments)
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise not_utf8(path, number, line, error.start, file.head, utf8) from None
                utf8 = utf8 or not text.isascii()
                yield text
            if digests is not None:
                digests[str(path)] = file.file.sha256()
    except Damaged as error:
        raise UserError(f"{path}:{number + 1}: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def records(path: str | Path, digests: dict[str, str] | None = None) -> Iterator[str]:
    """The lines of a file that has one record a line, as `read_lines`. Raises `UserError` if they end with carriage
    returns alone."""
    for number, line in enumerate(read_lines(path, digests=digests), 1):
        if number == 1 and line.count("\r") > 1:
            raise UserError(
                f"{path}: its lines end with carriage returns alone, as of an old Mac; convert it with: "
                f"{piped(_RETURNS, path)} > NEW"
            )
        yield line.removeprefix("\ufeff")  # of a file that was joined to others


def count_lines(path: str | Path) -> int:
    """The number of lines that `read_lines` yields. Raises what `read_lines` raises."""
    count, last = 0, b"\n"
    try:
        with open_text(path) as file:
            while block := file.read1(1 << 20):
                count, last = count + block.count(b"\n"), block[-1:]
    except OSError:
        return sum(1 for _ in read_lines(path))  # raises the error with its line
    return count + (last != b"\n")


def read_pairs(
    parallel: Parallel, fields: tuple[str, str] = ("source", "target"), digests: dict[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the (source, target) pairs of a corpus.

    Two files are read side by side and must have the same number of lines. A .tsv has two columns, source and target,
    without quoting. A .jsonl has one object per line with the two `fields`; a line break in a field becomes a space,
    because a sentence is one line everywhere else. The field a.b is the key "a.b", or else the key "b" of the object
    "a". `digests` is as in `read_lines`. Raises `UserError` with file and line.
    """
    refuse_csv(path for path in parallel[:2] if path is not None)
    kind = file_kind(parallel.source)
    if kind == "text" and parallel.target is None:
        open_text(parallel.source).close()  # raises an error of its own if the file is not text
        reason = "no target given; name its file of translations, or use a .tsv or .jsonl"
        raise UserError(f"{parallel.source}: {reason}")
    if kind != "text" and parallel.target is not None:
        raise UserError(f"{parallel.source}: holds both sides, so leave out its target {parallel.target}")
    if kind == "text" and file_kind(parallel.target) != "text":
        raise UserError(f"{parallel.target}: holds both sides; give it as the source, without a target")
    with contextlib.suppress(OSError):  # reading the file raises it again
        if kind == "text" and os.path.samefile(parallel.source, parallel.target):
            raise UserError(f"{parallel.target}: is also the source; name the file of its translations")
    return {"text": _text, "tsv": _tsv, "jsonl": _jsonl}[kind](parallel, fields, digests)


_Digests = dict[str, str] | None


def _text(parallel: Parallel, fields: tuple[str, str], digests: _Digests) -> Iterator[tuple[str, str]]:
    segments: tuple[list[Segment], list[Segment]] = [], []
    sources = read_lines(parallel.source, segments[0], digests)
    targets = read_lines(parallel.target, segments[1], digests)
    if not os.path.isfile(parallel.source):  # a program may write its two pipes one after the other
        sources = iter(list(sources))
    count = 0
    while True:
        source, target = next(sources, None), next(targets, None)
        if count == 0:
            compare(*segments, parallel.source, parallel.target)
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


def _tsv(parallel: Parallel, fields: tuple[str, str], digests: _Digests) -> Iterator[tuple[str, str]]:
    quoted = QuotedFields(parallel.source)
    for number, line in enumerate(records(parallel.source, digests), 1):
        columns = quoted.seen(number, line.split("\t"))
        if len(columns) == 1:
            raise UserError(f"{parallel.source}:{number}: no tab; each line must hold source, a tab, target")
        if len(columns) > 2:
            raise UserError(
                f"{parallel.source}:{number}: {len(columns)} columns, but each line must hold source, a tab, target; "
                "remove a stray tab, or select two columns, such as: cut -f2,3 OLD.tsv > NEW.tsv"
            )
        if number == 1 and tuple(columns) == fields:
            fix = "remove it: tail -n +2 OLD.tsv > NEW.tsv"
            raise UserError(f"{parallel.source}:1: a header, but a .tsv of pairs has none; {fix}")
        yield columns[0], columns[1]


class RepeatedKey(ValueError):
    """A JSON object has the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RepeatedKey(f"the key {json.dumps(name)} occurs twice in one object; remove one of them")
    return row


read_json = json.JSONDecoder(object_pairs_hook=_object).decode
"""As json.loads, but raises `RepeatedKey` if an object has the same key twice: programs differ in whether they take the
first value, the last or none."""


def _jsonl(parallel: Parallel, fields: tuple[str, str], digests: _Digests) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(records(parallel.source, digests), 1):
        where = f"{parallel.source}:{number}"
        try:
            row = read_json(line)
        except RepeatedKey as error:
            raise UserError(f"{where}: {error}") from None
        except (ValueError, RecursionError):  # ValueError: Python refuses an integer of 5,000 digits
            row = None
        if not isinstance(row, dict):
            needed = f"each line must be one, with '{fields[0]}' and '{fields[1]}'"
            raise UserError(f"{where}: not a JSON object; {needed}{list_hint(line)}")
        source, target = (_field(row, field, where) for field in fields)
        yield source, target


def _field(row: dict[str, Any], field: str, where: str) -> str:
    """The string in a field, with line breaks replaced by spaces. `where` begins an error message: file and line."""
    try:
        value = value_at(row, field)
    except KeyError:
        names = [
            name if name.isprintable() else json.dumps(name) for name in itertools.islice(field_names(row), _SHOWN + 1)
        ]
        fields = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
        raise UserError(f"{where}: no field '{field}' (it has {fields or 'none'}); set data.fields") from None
    if not isinstance(value, str):
        kind = {dict: "an object", list: "a list"}.get(type(value)) or json.dumps(value)[:40]
        inner = (
            next((name for name in field_names(value) if name.isprintable()), None) if isinstance(value, dict) else None
        )
        fix = "" if inner is None else f"; name a field of it, such as {field}.{inner}"
        raise UserError(f"{where}: field '{field}' must be a string, not {kind}{fix}")
    try:
        value.encode()
    except UnicodeEncodeError:
        reason = "holds half a surrogate pair, which is not text; correct it"
        raise UserError(f"{where}: field '{field}' {reason}") from None
    return value.replace("\r\n", " ").replace("\n", " ")


def value_at(row: dict[str, Any], field: str) -> Any:
    """The value of a field: that of the key `field`, else that of the part behind a dot in the object before the dot.
    Raises KeyError if there is none."""
    if field in row:
        return row[field]
    parts = field.split(".")
    for i in range(1, len(parts)):
        inner = row.get(".".join(parts[:i]))
        if isinstance(inner, dict):
            try:
                return value_at(inner, ".".join(parts[i:]))
            except KeyError:
                pass
    raise KeyError(field)


def field_names(row: dict[str, Any]) -> Iterator[str]:
    """Yield the names of all fields of an object and of the objects in it, outer fields first."""
    rows = deque([("", row)])
    while rows:
        prefix, row = rows.popleft()
        for name, value in row.items():
            if isinstance(value, dict) and value:
                rows.append((f"{prefix}{name}.", value))
            else:
                yield prefix + name


def never_seen(counts: Counter[str]) -> str:
    """The words of a warning that counts and lists characters that the vocabulary lacks."""
    # Show the character itself only if that is harmless on a terminal.
    names = [
        f"{c} (U+{ord(c):04X})" if c.isprintable() and not unicodedata.combining(c) else f"U+{ord(c):04X}"
        for c, _ in counts.most_common(_MAX_SHOWN)
    ]
    if len(counts) > _MAX_SHOWN:
        names.append(f"and {len(counts) - _MAX_SHOWN} more")
    characters = "1 character was" if counts.total() == 1 else f"{counts.total():,} characters were"
    return f"{characters} never seen in training: {', '.join(names)}"


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def fingerprint(parallel: Parallel, digests: Mapping[str, str] | None = None) -> str:
    """Hex digest of a corpus's content: the bytes of its files and how they are read, but not their paths.

    `digests`: path -> sha256 of files that were already read.
    """
    return fingerprint_of_files([path for path in parallel[:2] if path is not None], digests)


def fingerprint_of_files(paths: Sequence[str], digests: Mapping[str, str] | None = None) -> str:
    """As `fingerprint`, for files in this order."""
    parts = []
    for path in paths:
        with open_text(path) as file:
            kind = file_kind(path) if file.segments is None else "sgml"
            digest = sha256(path) if digests is None else digests[str(path)]
            parts.append((kind, file.compression == "gzip", digest))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_same(parallel: Parallel, expected: str, digests: Mapping[str, str]) -> None:
    """Raise `UserError` if the `fingerprint` of a corpus is not `expected`: another program changed it meanwhile.

    `digests`: path -> sha256 of the bytes that were read.
    """
    require_same_files([path for path in parallel[:2] if path is not None], expected, digests)


def require_same_files(paths: Sequence[str], expected: str, digests: Mapping[str, str]) -> None:
    """As `require_same`, for the `fingerprint_of_files`."""
    if fingerprint_of_files(paths, digests) != expected:
        raise changed(paths)


def changed(paths: Sequence[str]) -> UserError:
    """The error for files that are not the same any more."""
    names = " or ".join(paths)
    return UserError(f"{names} changed while it was read; run the same command again when no program writes to it")
