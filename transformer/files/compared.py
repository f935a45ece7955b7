"""Files that are read back after writing: a faulty disk reports success, but holds something else."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def write_file(path: Any, content: bytes) -> None:
    """Write a file and read it back. Raises `OSError` if it then has other content. The path may be in a bucket."""
    path.write_bytes(content)
    if path.read_bytes() != content:
        raise _differs(path)


class Compared:
    """A new file for `compared`, which hashes what is written to it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, block: Any) -> int:
        """`block`: bytes, or an array's `data`."""
        self.sha256.update(block)
        return self._file.write(block)


@contextlib.contextmanager
def compared(path: Path) -> Iterator[Compared]:
    """Context manager: a new local file to write to in blocks. After the block of code it is read back.

    Raises `OSError` if it then has other content.
    """
    with open(path, "wb") as file:
        new = Compared(file)
        yield new
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != new.sha256.digest():
            raise _differs(path)


def _differs(path: Any) -> OSError:
    return OSError(errno.EIO, "it does not hold what was written", str(path))
