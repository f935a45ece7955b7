"""Open text by its content: gzip, xz and bzip2 are unpacked and SGML sets unwrapped, whatever a file is called. A file
of another kind is refused, with the tool that makes text of it."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

from transformer.config import UserError
from transformer.data import sgml
from transformer.data.unpacking import Damaged, Unpacked, packing_of, undecided, unpacked_name

_BLOCK = 1 << 16
_HEAD = 4096
"""Bytes of a file that say what it is."""

_CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
"""Characters that text seldom has."""
_STREAM = "standard input"
_TEXT = "plain text"
# Offset, bytes there, what such a file is, what to do. {} is the path.
_FOREIGN = (
    (0, b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it first: zstd -d {}"),
    (1, b"\x2a\x4d\x18", "packed by zstd or lz4", "unpack it first: zstd -d {}, or lz4 -d {}"),
    (0, b"\x04\x22\x4d\x18", "packed by lz4", "unpack it first: lz4 -d {}"),
    (0, b"\x89LZO\0", "packed by lzop", "unpack it first: lzop -d {}"),
    (0, b"LZIP\x01", "packed by lzip", "unpack it first: lzip -d {}"),
    (0, b"\x1f\x9d", "packed by compress", "unpack it first: uncompress {}"),
    (30, b"[Content_Types].xml", "a document of Microsoft Office", "save it as text in UTF-8 first"),
    (30, b"mimetypeapplication/", "a document of an office program", "save it as text in UTF-8 first"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it first (unzip {}), and name a file of it"),
    (0, b"PK\x05\x06", "an empty zip archive", "make it again"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first (7z x {}), and name a file of it"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unpack it first (unrar x {}), and name a file of it"),
    (257, b"ustar", "a tar archive", "unpack it first (tar -xf {}), and name a file of it"),
    (0, b"\xff\xfe\0\0", "UTF-32", "convert it first: iconv -f utf-32 -t utf-8 {} > NEW"),
    (0, b"\0\0\xfe\xff", "UTF-32", "convert it first: iconv -f utf-32 -t utf-8 {} > NEW"),
    (0, b"\xff\xfe", "UTF-16", "convert it first: iconv -f utf-16 -t utf-8 {} > NEW"),
    (0, b"\xfe\xff", "UTF-16", "convert it first: iconv -f utf-16 -t utf-8 {} > NEW"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its text to a file first, with sqlite3 {}"),
    (0, b"PAR1\x15", "a Parquet file", "write it as .jsonl first, e.g. with pandas: read_parquet, to_json"),
    (0, b"ARROW1\0\0", "an Arrow file", "write it as .jsonl first, e.g. with pandas: read_feather, to_json"),
    (0, b"%PDF-", "a PDF", "take its text first: pdftotext {}"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office", "save it as text in UTF-8 first"),
    (0, b"{\\rtf", "an RTF document", "save it as text in UTF-8 first"),
    (0, b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
)


class Opened(io.BufferedReader):
    """Bytes of a text, one line a line: neither packed nor SGML any more."""

    head: bytes
    """The first bytes of the file, unpacked."""
    packing: str | None
    """What it was packed by."""
    segments: list[sgml.Segment] | None = None
    """Of an SGML set; its lines are their texts."""
    file: Hashed
    """The file itself."""


def open_text(path: str | Path) -> Opened:
    """Open a file. Raises `UserError` for one that can't be opened or is of another kind; reading may raise `Damaged`.

    It is opened once and read from begin to end, so it may be a pipe.
    """
    name = str(path)
    try:
        raw = Hashed(path)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        opened = _unpacked(raw, name, _HEAD)
        named_sgml = unpacked_name(name).endswith((".sgm", ".sgml"))
        if not named_sgml and not sgml.is_set(opened.head):
            _refuse_markup(opened.head, name)
        opened = _unwrapped(opened, name) if named_sgml or sgml.is_set(opened.head) else opened
        opened.file = raw
        return opened
    except BaseException:
        raw.close()
        raise


def open_stream(stream: Any) -> Opened:
    """As `open_text`, of a stream, such as standard input. It is not closed.

    Waits for its first bytes, but for no more than show what it is: each line can be read once it is there.
    """
    # Below its buffer: a thread that waits while holding the buffer's lock would keep Python from ending.
    opened = _unpacked(_Borrowed(getattr(stream, "raw", stream)), _STREAM, 1)
    if sgml.is_set(opened.head):
        return _unwrapped(opened, _STREAM)
    _refuse_markup(opened.head, _STREAM)
    return opened


def refuse_other(path: str | Path, wanted: str) -> None:
    """Raise `UserError` for a file that is packed, an archive, or something else that is no `wanted` for sure."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if (packing := packing_of(head, str(path))) is not None:
        fix = f"unpack it first: {packing} -dc {shlex.quote(str(path))} > NEW"
        raise UserError(f"{path}: packed by {packing}, not {wanted}; {fix}")
    _refuse_foreign(head, str(path), wanted)
    _refuse_markup(head, str(path), wanted)


def read_all(path: str | Path) -> bytes:
    """All bytes of a text; raises as `open_text`, and for a damaged file."""
    with open_text(path) as opened:
        return _read_all(opened, str(path))


def _unpacked(raw: Any, name: str, enough: int) -> Opened:
    head = _head(raw, name, enough)
    packing = packing_of(head, name)
    found: io.RawIOBase = _Prefixed(head, raw)
    if packing is not None:
        unpacked = Unpacked(found, packing)
        head = _head(unpacked, name, enough)
        found = _Prefixed(head, unpacked)
        if packing_of(head) is not None:
            raise UserError(f"{name}: packed twice; unpack it once, e.g. with {packing} -d")
    _refuse_foreign(head, name)
    opened = Opened(found, _BLOCK)
    opened.head, opened.packing = head, packing
    return opened


def _unwrapped(opened: Opened, name: str) -> Opened:
    """The segments of an SGML set, one a line."""
    content = _read_all(opened, name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + content.count(b"\n", 0, error.start)
        begin = content.rfind(b"\n", 0, error.start) + 1
        end = content.find(b"\n", error.start)
        line = content[begin : None if end < 0 else end]
        utf8 = not content[:begin].isascii()
        raise not_utf8(name, number, line, error.start - begin, opened.head, utf8) from None
    segments = sgml.segments(text, name)
    unwrapped = Opened(io.BytesIO("".join(f"{segment.text}\n" for segment in segments).encode()))
    unwrapped.head, unwrapped.packing, unwrapped.segments = opened.head, opened.packing, segments
    opened.close()
    return unwrapped


def _read_all(opened: Opened, name: str) -> bytes:
    blocks: list[bytes] = []
    try:
        while block := opened.read1(_BLOCK):
            blocks.append(block)
    except Damaged as error:
        number = 1 + b"".join(blocks).count(b"\n")
        raise UserError(f"{name}:{number}: {error}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    return b"".join(blocks)


def _head(raw: Any, name: str, enough: int) -> bytes:
    """At least so many first bytes, if there are, and so many that it is clear whether they are packed."""
    head = b""
    try:
        while len(head) < enough or undecided(head) or (len(head) < _HEAD and sgml.undecided(head)):
            if not (block := raw.read(_HEAD)):
                break
            head += block
    except Damaged:
        return head  # told when this place is read
    except UserError:  # a stream that tells itself what is wrong with it
        raise
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    return head


def _refuse_foreign(head: bytes, name: str, wanted: str = _TEXT) -> None:
    path = "FILE" if name == _STREAM else shlex.quote(name)
    for offset, magic, what, fix in _FOREIGN:
        if head.startswith(magic, offset):
            raise UserError(f"{name}: {what}, not {wanted}; {fix.format(path)}")
    if (encoding := _wide(head)) is not None:
        fix = f"convert it first: iconv -f {encoding.lower()} -t utf-8 {path} > NEW"
        raise UserError(f"{name}: seems to be {encoding}, not UTF-8; {fix}")


def _refuse_markup(head: bytes, name: str, wanted: str = _TEXT) -> None:
    path, root = "FILE" if name == _STREAM else shlex.quote(name), sgml.root(head)
    if root == "dataset":
        raise UserError(
            f"{name}: a test set of WMT in XML; write its sides as files first, with wmt-unwrap -o NEW < {path} (pip "
            "install git+https://github.com/wmt-conference/wmt-format-tools), or sacrebleu -t SET -l LANGUAGES --echo"
        )
    if root in ("tmx", "xliff"):
        raise UserError(f"{name}: {root.upper()}, not {wanted}; write each side as a file first, one segment a line")
    if root == "html":
        raise UserError(f"{name}: a page of HTML, not {wanted}; did a download go wrong?")
    if root and head.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml"):
        raise UserError(f"{name}: XML (<{root}>), not {wanted}; write each side as a file first, one sentence a line")


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, or None.

    The upper bytes of most alphabets are control characters, and so stand at the same places everywhere. Single ones
    are text.
    """
    size = len(head) // 4
    places = [head[i : 4 * size : 4] for i in range(4)]
    counts = [len(place) - len(place.translate(None, _CONTROL)) for place in places]
    if size < 4 or sum(counts) < 8 or any(0.1 * size < count < 0.9 * size for count in counts):
        return None
    shape = "".join("-" if count >= 0.9 * size else "x" for count in counts)
    return {"x---": "UTF-32LE", "---x": "UTF-32BE", "x-x-": "UTF-16LE", "-x-x": "UTF-16BE"}.get(shape)


def not_utf8(path: str | Path, number: int, line: bytes, at: int, head: bytes, utf8: bool) -> UserError:
    """The error of a line whose byte `at` is not UTF-8, with what to do about it.

    `head` are the file's first bytes; `utf8`: lines before have letters beyond ASCII that are UTF-8.
    """
    near = line[max(0, at - _HEAD) : at + _HEAD]
    both = head + near
    letters = len(re.findall(rb"[A-Za-z]", near))
    high = len(re.findall(rb"[\x80-\xff]", near))
    text = near.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(char > "\x7f" for char in text) - broken
    if utf8 or whole > max(2, 3 * broken):
        fix = "other letters are UTF-8, so correct this line, or drop such bytes: iconv -c -f utf-8 -t utf-8 FILE"
    elif len(both) - len(both.translate(None, _CONTROL)) > len(both) // 50:
        fix = "the file is binary; give a text file"
    elif letters >= 3 * high:
        encoding = "cp1252" if re.search(rb"[\x80-\x9f]", near) else "latin1"
        fix = f"convert the file first, e.g. with iconv -f {encoding} -t utf-8 FILE if it is Western European"
    else:
        fix = "convert the file first, with iconv -f ENCODING -t utf-8 FILE; uchardet FILE guesses the encoding"
    return UserError(f"{path}:{number}: byte 0x{line[at]:02x} is not valid UTF-8; {fix}")


class Hashed(io.FileIO):
    """A file whose digest is taken of what was read, while it was read."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._sha256 = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._sha256.update(memoryview(buffer)[:count])
        return count

    def read(self, size: int = -1) -> bytes:
        block = super().read(size)
        self._sha256.update(block)
        return block

    def sha256(self) -> str:
        """Hex digest of what was read."""
        return self._sha256.hexdigest()


class _Prefixed(io.RawIOBase):
    """First bytes that were read already, and the rest."""

    def __init__(self, head: bytes, raw: Any):
        self._head, self._raw = head, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._raw.readinto(buffer)
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Borrowed(io.RawIOBase):
    """A stream that somebody else closes."""

    def __init__(self, raw: Any):
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)
