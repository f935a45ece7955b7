"""Read the text of a language model, in parts: one running text, or documents.

Files are UTF-8; a byte order mark and the "\\r" of Windows line ends are removed, all else is kept. Where a text is cut
into parts depends on the text alone.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from transformer.config import PretrainConfig, TextConfig, UserError, shown
from transformer.data.compression import Damaged, uncompressed_name
from transformer.data.foreign import not_utf8, piped, refuse_binary
from transformer.data.opening import Opened, open_text
from transformer.data.sources import require_files, warn_of_repeated
from transformer.files import unreadable

log = logging.getLogger("transformer")

_BLOCK = 1 << 20  # bytes read at a time
_PART = 250_000  # characters after which a part ends at the next line that starts with a letter or the like
_LONGEST = 1_000_000  # most characters in a part
# The first bytes of JSON objects, or of a list of them.
_RECORD = re.compile(rb'(?:\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"[^"\n]*"\s*:')
_TABLES = (".csv", ".tsv")
_BREAK = re.compile(r"\n(?=\S)")  # no vocabulary has a piece across the beginning of this match


class Text(NamedTuple):
    """A text on disk: some files, or a range of their characters or documents."""

    paths: tuple[str, ...]
    documents: str = "none"
    """As `TextConfig.documents`."""
    begin: int = 0
    """First character of the text (documents = "none") or first document that belongs to it."""
    end: int | None = None
    """The character or document after the last one; None = all."""
    most_lines: int | None = None
    """Documents between blank lines are cut into runs of at most this many lines; None = not cut."""

    @property
    def chosen(self) -> list[Any]:
        """What of the files belongs to the text, and as which documents: for keys of caches."""
        return [*self[1:4], *([] if self.most_lines is None else [self.most_lines])]

    @property
    def name(self) -> str:
        """The names of the files, for messages."""
        names = [Path(path).name for path in self.paths]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


class Part(NamedTuple):
    """A piece of a text."""

    text: str
    file: int
    """Index of its file."""
    line: int
    """Number of its first line in the file, from 1."""
    begins: bool
    """Whether a document begins with it."""


class Texts(NamedTuple):
    """The training, development and test text of a run."""

    train: Text
    dev: Text | None
    test: Text | None


def texts(config: TextConfig) -> Texts:
    """The text of a config. Raises `UserError` if files are missing or empty; it names all missing files at once.

    Logs a warning for a file that is given twice.
    """
    if not config.text:
        raise UserError("data.text: name at least one file of training text")
    _require_files(config, "text", "dev_text", "test_text")
    return _split_off(
        config, *(Text(paths, config.documents) for paths in (config.text, config.dev_text, config.test_text))
    )


def pretraining_texts(config: PretrainConfig) -> tuple[Texts, Text | None]:
    """The documents of a config, and its text without documents. Raises `UserError` and warns as `texts` does."""
    if not config.text:
        raise UserError("data.text: name at least one file of training text")
    _require_files(config, "text", "unpaired_text", "dev_text", "test_text")
    sides = (
        Text(paths, "blank_lines", most_lines=config.document_lines)
        for paths in (config.text, config.dev_text, config.test_text)
    )
    return _split_off(config, *sides), Text(config.unpaired_text, "files") if config.unpaired_text else None


def _require_files(config: TextConfig | PretrainConfig, *names: str) -> None:
    """Raise `UserError` if files of these fields, or the vocabulary, are missing or empty."""
    named_paths = [(f"data.{name}", path) for name in names for path in getattr(config, name)]
    require_files([*named_paths, *([("data.tokenizer", config.tokenizer)] if config.tokenizer else [])])
    warn_of_repeated(named_paths)
    for name, path in named_paths:
        _warn_of_records(name, path)


def _split_off(config: TextConfig | PretrainConfig, train: Text, dev: Text, test: Text) -> Texts:
    """The texts of a run. Without a development text, it is the last share of the training text."""
    if not dev.paths and config.dev_share:
        train, dev = split(train, config.dev_share)
    return Texts(train, dev if dev.paths else None, test if test.paths else None)


def given_text(text: Any) -> str:
    """The path of the option --text. Raises `UserError` unless it is that of a file."""
    if not (isinstance(text, (str, os.PathLike)) and os.fspath(text)):
        raise UserError(f"--text {shown(text)}: give the path of a file")
    require_files([("--text", path := os.fspath(text))])
    _warn_of_records("--text", path)
    return path


def _warn_of_records(name: str, path: str) -> None:
    """Log a warning if a file holds JSON objects or a table, which are read as they stand. `name`: its field or
    option."""
    with open_text(path) as file:
        if found := _RECORD.match(file.head):
            log.warning(
                "%s: %s holds JSON objects, which are read as they stand; to read their field 'text' only, write it to "
                "a file first: %s > NEW",
                *(name, path, piped("jq -r '.[].text'" if found[1] else "jq -r .text", path)),
            )
    if uncompressed_name(path).endswith(_TABLES):
        log.warning(
            "%s: %s is read as it stands, with separators, quotes and all columns; to read the texts of one column "
            "only, write them to a file first",
            *(name, path),
        )


def split(text: Text, share: float) -> tuple[Text, Text]:
    """The text without its last share of characters or documents, and that share. Both have at least one."""
    unit = "character" if text.documents == "none" else "document"
    count = 0
    for part in parts(text):
        count += len(part.text) if text.documents == "none" else part.begins
    if count < 2:
        raise UserError(
            f"data.dev_share = {share}: {text.name} has a single {unit}, so no development text can be split off; give "
            "data.dev_text, or set data.dev_share to 0"
        )
    cut = min(max(int(count * (1 - share)), 1), count - 1)
    return text._replace(end=cut), text._replace(begin=cut)


def parts(text: Text, digests: dict[str, str] | None = None) -> Iterator[Part]:
    """Yield the text in parts, at most 1,000,000 characters each unless a line is longer.

    With `documents` = "none", one document begins with the first part. After a file is read, `digests[path]` is the
    sha256 of its bytes. Raises `UserError` for a file that is missing, damaged, binary, not UTF-8, or without text.
    """
    at = 0  # characters or documents before the next part
    for part in _all_parts(text, digests):
        if text.documents == "none":
            begin, end = max(text.begin - at, 0), None if text.end is None else max(text.end - at, 0)
            at += len(part.text)
            if kept := part.text[begin:end]:
                begins = at - len(part.text) <= text.begin
                yield part._replace(text=kept, line=part.line + part.text.count("\n", 0, begin), begins=begins)
        else:
            at += part.begins  # number of documents up to this part
            if text.begin < at and (text.end is None or at <= text.end):
                yield part


def _all_parts(text: Text, digests: dict[str, str] | None) -> Iterator[Part]:
    """The parts of all files, without regard to `begin` and `end`."""
    for number, path in enumerate(text.paths):
        blocks, part = _blocks(path, digests), None
        framed = text.documents == "blank_lines"
        for part in _documents(blocks, number, text.most_lines) if framed else _cut(blocks, number):
            yield part
        if part is None:
            what = "empty" if os.path.getsize(path) == 0 else "holds no text"
            raise UserError(f"{path}: {what}; leave it out, or give another file")


def file_of(text: str) -> bytes:
    """The content of a file that is read as this text: `parts` removes a byte order mark and the "\\r" of line ends."""
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return (mark + text.replace("\r\n", "\r\r\n")).encode()


def _cut(blocks: Iterable[str], file: int) -> Iterator[Part]:
    """One document in parts."""
    rest, line, begins = "", 1, True
    for block in blocks:
        rest += block
        while (at := _BREAK.search(rest, _PART, _LONGEST)) or len(rest) > _LONGEST:
            end = at.start() if at else _LONGEST
            yield Part(rest[:end], file, line, begins)
            line, rest, begins = line + rest.count("\n", 0, end), rest[end:], False
    if rest:
        yield Part(rest, file, line, begins)


def _documents(blocks: Iterable[str], file: int, most_lines: int | None) -> Iterator[Part]:
    """Documents between blank lines, without the line break at their end; a long one in parts. `most_lines`: see
    `Text`."""
    lines: list[str] = []
    size, first, begins, count = 0, 1, True, 0  # count: the lines of the document so far
    for number, line in enumerate(_lines(blocks), 1):
        blank = not line.strip()
        ends = blank or count == most_lines
        if lines and (ends or (size > _PART and not line[0].isspace())):
            yield Part("\n".join(lines), file, first, begins)
            # A part that goes on begins with the line break after the part before it.
            lines, size, first, begins = ([] if ends else [""]), 0, number - 1, ends
            count = 0 if ends else count
        if not blank:
            first = number if not lines else first
            lines.append(line)
            size, count = size + len(line) + 1, count + 1
    if lines:
        yield Part("\n".join(lines), file, first, begins)


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in blocks, without line breaks."""
    begun: list[str] = []  # blocks of a line whose end has not come yet
    for block in blocks:
        first, *more = block.split("\n")
        begun.append(first)
        if more:
            yield "".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    if any(begun):
        yield "".join(begun)


def _blocks(path: str, digests: dict[str, str] | None) -> Iterator[str]:
    """Yield the text of a file in blocks, with "\\n" for the line ends of Windows."""
    line = 1  # number of the line in which the next block begins
    try:
        with open_text(path) as file:
            refuse_binary(file.head, path)
            decoder, held = codecs.getincrementaldecoder("utf-8")(), ""
            first, utf8 = True, False
            while True:
                block = file.read1(_BLOCK)
                try:
                    text = held + decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise _undecodable(error, path, line, file, utf8) from None
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                held = "\r" if text.endswith("\r") and block else ""
                text = text[: len(text) - len(held)].replace("\r\n", "\n")
                line, utf8 = line + text.count("\n"), utf8 or not text.isascii()
                if text:
                    yield text
                if not block:
                    break
            if digests is not None:
                digests[path] = file.file.sha256()
    except Damaged as error:
        raise UserError(f"{path}:{line}: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _undecodable(error: UnicodeDecodeError, path: str, line: int, file: Opened, utf8: bool) -> UserError:
    """The error for a block that begins in line `line` and is not UTF-8."""
    content = error.object
    begin = content.rfind(b"\n", 0, error.start) + 1
    end = content.find(b"\n", error.start)
    number = line + content.count(b"\n", 0, error.start)
    near = content[begin : None if end < 0 else end]
    return not_utf8(path, number, near, error.start - begin, file.head, utf8 or not content[:begin].isascii())
