"""Open text by its content, whatever the file's name: decompress gzip, xz and bzip2, and unwrap SGML sets. Refuse other
kinds of files, with an error that names the tool that converts them to text."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from transformer.config import UserError
from transformer.data import sgml
from transformer.data.compression import Damaged, Decompressed, compression_of, uncompressed_name, undecided
from transformer.data.foreign import HEAD, STREAM, not_utf8, refuse_binary, refuse_foreign, refuse_markup
from transformer.files import refuse_empty, unreadable

_BLOCK = 1 << 16


class Opened(io.BufferedReader):
    """A text as bytes, one sentence a line: decompressed, and without SGML."""

    head: bytes
    """The first bytes of the file, decompressed."""
    compression: str | None
    """Compression of the file: "gzip", "xz", "bzip2" or None."""
    segments: list[sgml.Segment] | None = None
    """The segments of an SGML set, whose texts are the lines; None for other files."""
    file: Hashed
    """The file on disk, with the digest of its bytes."""


def open_text(path: str | Path) -> Opened:
    """Open a file. Raises `UserError` if it can't be opened or is not text. Reading from it may raise `Damaged`.

    The file is opened once and read from beginning to end, so it may be a pipe.
    """
    refuse_empty("the name of a file", path)
    name = str(path)
    try:
        raw = Hashed(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise unreadable(name, error) from None
    try:
        opened = _unpacked(raw, name, HEAD)
        named_sgml = uncompressed_name(name).endswith((".sgm", ".sgml"))
        if not named_sgml and not sgml.is_set(opened.head):
            refuse_markup(opened.head, name, compression=opened.compression)
        opened = _unwrapped(opened, name) if named_sgml or sgml.is_set(opened.head) else opened
        opened.file = raw
        return opened
    except BaseException:
        raw.close()
        raise


def open_stream(stream: Any) -> Opened:
    """As `open_text`, for a stream such as standard input. The stream is not closed.

    Waits only for as many first bytes as identify the format, so that each line can be read as soon as it arrives.
    """
    # Read below the stream's buffer: a thread that waits with the buffer's lock would keep Python from exiting.
    opened = _unpacked(_Borrowed(getattr(stream, "raw", stream)), STREAM, 1)
    if sgml.is_set(opened.head):
        return _unwrapped(opened, STREAM)
    refuse_markup(opened.head, STREAM, compression=opened.compression)
    refuse_binary(opened.head, STREAM)
    return opened


def read_all(path: str | Path) -> bytes:
    """All bytes of a text. Raises `UserError` as `open_text`, and for a damaged file."""
    with open_text(path) as opened:
        return _read_all(opened, str(path))


def _unpacked(raw: Any, name: str, min_bytes: int) -> Opened:
    head = _head(raw, name, min_bytes)
    compression = compression_of(head, name)
    content: io.RawIOBase = _Prefixed(head, raw)
    if compression is not None:
        unpacked = Decompressed(content, compression)
        head = _head(unpacked, name, min_bytes)
        content = _Prefixed(head, unpacked)
        if compression_of(head) is not None:
            raise UserError(f"{name}: compressed twice; decompress it once, e.g. with {compression} -d")
    refuse_foreign(head, name, compression=compression)
    opened = Opened(content, _BLOCK)
    opened.head, opened.compression = head, compression
    return opened


def _unwrapped(opened: Opened, name: str) -> Opened:
    """Replace an opened SGML set by its segments, one a line."""
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
    unwrapped.head, unwrapped.compression, unwrapped.segments = opened.head, opened.compression, segments
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
        raise unreadable(name, error) from None
    return b"".join(blocks)


def _head(raw: Any, name: str, min_bytes: int) -> bytes:
    """Read at least `min_bytes` first bytes, if the file has so many, and enough to tell the format."""
    head = b""
    try:
        while len(head) < min_bytes or undecided(head) or (len(head) < HEAD and sgml.undecided(head)):
            if not (block := raw.read(HEAD)):
                break
            head += block
    except Damaged:
        return head  # reading this place again raises it again
    except UserError:  # from a stream with error messages of its own
        raise
    except OSError as error:
        raise unreadable(name, error) from None
    return head


class Hashed(io.FileIO):
    """A file that updates a sha256 with the bytes that are read."""

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
        """Hex sha256 of the bytes that were read."""
        return self._sha256.hexdigest()


class _Prefixed(io.RawIOBase):
    """A stream of which the first bytes were read already: gives `head`, then the rest of `raw`."""

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
    """A stream that the caller closes, not this object."""

    def __init__(self, raw: Any):
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)
