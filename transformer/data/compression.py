"""Decompress gzip, xz and bzip2. The first bytes of a file tell the format."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16

_GZIP, _XZ, _BZIP2 = "gzip", "xz", "bzip2"
_MAGIC = {
    b"\x1f\x8b\x08": _GZIP,
    b"\xfd7zXZ\0": _XZ,
    b"]\0\0": _XZ,  # .lzma, its predecessor
    # The header is followed by the digits of pi (first block) or, in an empty file, of its square root.
    **{b"BZh%d%b" % (level, block): _BZIP2 for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P")},
}
_ENDINGS = {".gz": _GZIP, ".xz": _XZ, ".bz2": _BZIP2, ".lzma": _XZ}


class Damaged(OSError):
    """A compressed file is truncated or damaged."""


def uncompressed_name(path: str | Path) -> str:
    """The path of a file in lower case, without the extension of its compression."""
    name = str(path).lower()
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def compression_of(head: bytes, name: str = "") -> str | None:
    """The compression of a file with these first bytes: "gzip", "xz", "bzip2" or None.

    If the file ends within the first bytes, its name decides.
    """
    for magic, kind in _MAGIC.items():
        ends = head and len(head) < len(magic) and name.lower().endswith(tuple(_ENDINGS))
        if head.startswith(magic) or (ends and magic.startswith(head)):
            return kind
    return None


def undecided(head: bytes) -> bool:
    """Whether more bytes may show that the file is compressed."""
    return any(len(head) < len(magic) and magic.startswith(head) for magic in _MAGIC)


class _Gzip:
    """zlib's decompressor of a gzip member, with the methods of the decompressors of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    eof = property(lambda self: self._inner.eof)
    unused_data = property(lambda self: self._inner.unused_data)
    needs_input = property(lambda self: not self._inner.unconsumed_tail)

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, size)


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    _GZIP: _Gzip,
    _XZ: lzma.LZMADecompressor,
    _BZIP2: bz2.BZ2Decompressor,
}


class Decompressed(io.RawIOBase):
    """The content of a compressed file, which has one or several streams. Python's readers of xz and bzip2 do not fit:
    they treat a second stream with damaged first bytes as the end of the file."""

    def __init__(self, packed: io.RawIOBase, kind: str):
        self._packed, self._kind = packed, kind
        self._stream = _DECOMPRESSORS[kind]()
        self._waiting = b""
        self._failure: Damaged | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._failure is not None:
            raise self._failure
        data = self._read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_some(self, size: int) -> bytes:
        while True:
            if self._stream.eof and not self._next_stream():
                return b""
            block = b""
            if self._stream.needs_input:
                block = self._waiting or self._packed.read(_BLOCK)
                self._waiting = b""
                if not block:
                    raise self._damaged("it is truncated")
            try:
                data = self._stream.decompress(block, size)
            except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise self._damaged(error) from None
            if data:
                return data

    def _next_stream(self) -> bool:
        """Begin the next stream, after zero bytes if there are any. Returns False at the end of the file."""
        self._waiting = self._stream.unused_data.lstrip(b"\0")
        while not self._waiting:
            if not (block := self._packed.read(_BLOCK)):
                return False
            self._waiting = block.lstrip(b"\0")
        self._stream = _DECOMPRESSORS[self._kind]()
        return True

    def _damaged(self, why: object) -> Damaged:
        self._failure = Damaged(f"damaged or not a {self._kind} file ({why}); fetch or compress it again")
        return self._failure

    def close(self) -> None:
        if not self.closed:
            self._packed.close()
        super().close()
