"""Recognise files that are not text by their first bytes, and refuse them with the tool that converts them to text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from transformer.config import UserError
from transformer.data import sgml
from transformer.data.compression import compression_of
from transformer.files import unreadable

HEAD = 4096
"""Number of first bytes that identify the format of a file."""

_CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
"""Control characters that are rare in text."""
_MOST_CONTROL = 50  # text has at most one of them in so many bytes
STREAM = "standard input"
_TEXT = "plain text"
_TAR = (b"ustar\0", b"ustar  \0")  # of POSIX and of GNU
_OFFICE = (b"[Content_Types].xml", b"docProps/", b"_rels/")  # the first name in the archive
# Offset, bytes at this offset, kind of file, fix. {} stands for the path.
_FOREIGN = (
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it first: zstd -d {}"),
    (1, b"\x2a\x4d\x18", "compressed by zstd or lz4", "decompress it first: zstd -d {}, or lz4 -d {}"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it first: lz4 -d {}"),
    (0, b"\x89LZO\0", "compressed by lzop", "decompress it first: lzop -d {}"),
    (0, b"LZIP\x01", "compressed by lzip", "decompress it first: lzip -d {}"),
    (0, b"\x1f\x9d", "compressed by compress", "decompress it first: uncompress {}"),
    *((30, name, "a document of Microsoft Office", "save it as text in UTF-8 first") for name in _OFFICE),
    (30, b"mimetypeapplication/", "a document of an office program", "save it as text in UTF-8 first"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it first (unzip {}), and name a file of it"),
    (0, b"PK\x05\x06", "an empty zip archive", "create it again"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first (7z x {}), and name a file of it"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unpack it first (unrar x {}), and name a file of it"),
    *((257, mark, "a tar archive", "unpack it first (tar -xf {}), and name a file of it") for mark in _TAR),
    (0, b"\xff\xfe\0\0", "UTF-32", "convert it first: iconv -f utf-32 -t utf-8 {} > NEW"),
    (0, b"\0\0\xfe\xff", "UTF-32", "convert it first: iconv -f utf-32 -t utf-8 {} > NEW"),
    (0, b"\xff\xfe", "UTF-16", "convert it first: iconv -f utf-16 -t utf-8 {} > NEW"),
    (0, b"\xfe\xff", "UTF-16", "convert it first: iconv -f utf-16 -t utf-8 {} > NEW"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its text to a file first, with sqlite3 {}"),
    (0, b"PAR1\x15", "a Parquet file", "write it as .jsonl first, e.g. with pandas: read_parquet, to_json"),
    (0, b"ARROW1\0\0", "an Arrow file", "write it as .jsonl first, e.g. with pandas: read_feather, to_json"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream", "write it as .jsonl first, with datasets: load_from_disk, to_json"),
    (0, b"%PDF-", "a PDF", "extract its text first: pdftotext {}"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office", "save it as text in UTF-8 first"),
    (0, b"{\\rtf", "an RTF document", "save it as text in UTF-8 first"),
    (0, b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
)


def refuse_other(path: str | Path, wanted: str) -> None:
    """Raise `UserError` for a file that is compressed, an archive, or otherwise certainly not a `wanted`.

    `wanted` is a phrase for the message, such as "a config file".
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(path, error) from None
    if (compression := compression_of(head, str(path))) is not None:
        fix = f"decompress it first: {compression} -dc {shlex.quote(str(path))} > NEW"
        raise UserError(f"{path}: compressed by {compression}, not {wanted}; {fix}")
    refuse_foreign(head, str(path), wanted)
    refuse_markup(head, str(path), wanted)


def refuse_foreign(head: bytes, name: str, wanted: str = _TEXT, compression: str | None = None) -> None:
    """Raise `UserError` for a file called `name` if its first bytes show a binary format, UTF-16 or UTF-32.

    `compression`: that of the file, if these are the first bytes of its decompressed content.
    """
    for offset, magic, what, fix in _FOREIGN:
        if head.startswith(magic, offset):
            raise UserError(f"{name}: {what}, not {wanted}; {_fix(fix, name, compression)}")
    if (encoding := _wide_encoding(head)) is not None:
        fix = f"convert it first: iconv -f {encoding.lower()} -t utf-8 {{}} > NEW"
        raise UserError(f"{name}: seems to be {encoding}, not UTF-8; {_fix(fix, name, compression)}")


def _fix(fix: str, name: str, compression: str | None) -> str:
    """Fill a file's path in what to do with it, where {} stands for it. Puts decompression before it if need be."""
    path = "FILE" if name == STREAM else shlex.quote(name)
    if compression is None:
        return fix.format(path)
    return f"decompress it first: {compression} -dc {path} > PLAIN; then {fix.replace(' first', '', 1).format('PLAIN')}"


def piped(command: str, path: str | Path) -> str:
    """A line for a shell that gives a command the content of a file, decompressed."""
    quoted, kind = shlex.quote(str(path)), None
    if Path(path).is_file():
        with open(path, "rb") as file:
            kind = compression_of(file.read(HEAD), str(path))
    return f"{command} < {quoted}" if kind is None else f"{kind} -dc {quoted} | {command}"


def refuse_binary(head: bytes, name: str) -> None:
    """Raise `UserError` for a file called `name` if many of its first bytes are control characters."""
    if len(head) - len(head.translate(None, _CONTROL)) > max(8, len(head) // _MOST_CONTROL):
        raise UserError(f"{name}: binary, not {_TEXT}; give the text that it was made from")


def refuse_markup(head: bytes, name: str, wanted: str = _TEXT, compression: str | None = None) -> None:
    """Raise `UserError` for a file called `name` if its first bytes show XML or HTML. `compression`: as for
    `refuse_foreign`."""
    root = sgml.root(head)
    if root == "dataset":
        fix = (
            "write its sides as files first, with wmt-unwrap -o NEW < {} (pip install "
            "git+https://github.com/wmt-conference/wmt-format-tools), or sacrebleu -t SET -l LANGUAGES --echo"
        )
        raise UserError(f"{name}: a test set of WMT in XML; {_fix(fix, name, compression)}")
    if root in ("tmx", "xliff"):
        raise UserError(f"{name}: {root.upper()}, not {wanted}; write each side as a file first, one segment a line")
    if root == "html":
        raise UserError(f"{name}: a page of HTML, not {wanted}; did a download go wrong?")
    if root and head.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml"):
        raise UserError(f"{name}: XML (<{root}>), not {wanted}; write each side as a file first, one sentence a line")


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of UTF-16 or UTF-32 without a byte order mark, or None.

    In most alphabets the upper bytes of a character are control characters, so these occur at regular offsets. A few
    control characters elsewhere are text.
    """
    size = len(head) // 4
    bytes_at = [head[i : 4 * size : 4] for i in range(4)]
    counts = [len(column) - len(column.translate(None, _CONTROL)) for column in bytes_at]
    if size < 4 or sum(counts) < 8 or any(0.1 * size < count < 0.9 * size for count in counts):
        return None
    shape = "".join("-" if count >= 0.9 * size else "x" for count in counts)
    return {"x---": "UTF-32LE", "---x": "UTF-32BE", "x-x-": "UTF-16LE", "-x-x": "UTF-16BE"}.get(shape)


def not_utf8(path: str | Path, number: int, line: bytes, at: int, head: bytes, utf8: bool) -> UserError:
    """The error for a line whose byte `at` is not UTF-8, with a fix that depends on the bytes around it.

    `head`: the first bytes of the file. `utf8`: whether earlier lines have non-ASCII characters in valid UTF-8.
    """
    near = line[max(0, at - HEAD) : at + HEAD]
    both = head + near
    letters = len(re.findall(rb"[A-Za-z]", near))
    high = len(re.findall(rb"[\x80-\xff]", near))
    text = near.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(char > "\x7f" for char in text) - broken
    if utf8 or whole > max(2, 3 * broken):
        fix = "other letters are UTF-8, so correct this line, or drop such bytes: iconv -c -f utf-8 -t utf-8 FILE"
    elif len(both) - len(both.translate(None, _CONTROL)) > len(both) // _MOST_CONTROL:
        fix = "the file is binary; give a text file"
    elif letters >= 3 * high:
        encoding = "cp1252" if re.search(rb"[\x80-\x9f]", near) else "latin1"
        fix = f"convert the file first, e.g. with iconv -f {encoding} -t utf-8 FILE if it is Western European"
    else:
        fix = "convert the file first, with iconv -f ENCODING -t utf-8 FILE; uchardet FILE guesses the encoding"
    return UserError(f"{path}:{number}: byte 0x{line[at]:02x} is not valid UTF-8; {fix}")
