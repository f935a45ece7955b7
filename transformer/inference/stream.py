"""Lines in, lines out: what is there is translated together, and written at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import BinaryIO

from transformer.inference.translator import Translator

CHUNK_LINES = 10_000
CHUNK_SECONDS = 0.05  # how long to wait for a line that follows at once


def translate_stream(translator: Translator, source: BinaryIO, target: BinaryIO) -> int:
    """Write one translation for each line of `source`, in order; returns their number.

    Lines end with "\\n" alone; the last may lack it. Whatever has arrived is translated together, so a file goes in
    large batches, and somebody who types gets an answer after each line. Bytes that are not UTF-8 are read as U+FFFD.
    """
    done = 0
    for lines in _chunks(source):
        texts = [line.decode("utf-8", errors="replace").rstrip("\r") for line in lines]
        for text in translator.translate(texts, first_line=done + 1):
            target.write(text.encode("utf-8", errors="replace") + b"\n")
        target.flush()
        done += len(lines)
    return done


def _chunks(source: BinaryIO) -> Iterator[list[bytes]]:
    """Runs of lines that arrived together. A thread reads, so that reading on never waits for a translation.

    It reads below the buffer of `source`: were it to wait while holding the buffer's lock, Python could not exit.
    """
    arrived: queue.Queue[bytes | None] = queue.Queue(maxsize=2 * CHUNK_LINES)
    raw = getattr(source, "raw", source)
    failure: list[OSError] = []

    def read() -> None:
        rest = b""
        try:
            while block := raw.read(1 << 16):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    arrived.put(line)
        except OSError as error:
            failure.append(error)
        if rest:
            arrived.put(rest)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    line = arrived.get()
    while line is not None:
        lines = [line]
        try:
            while len(lines) < CHUNK_LINES and (line := arrived.get(timeout=CHUNK_SECONDS)) is not None:
                lines.append(line)
            if line is not None:
                line = b""
        except queue.Empty:
            line = b""
        yield lines
        if line is not None:
            line = arrived.get()
    if failure:
        raise failure[0]
