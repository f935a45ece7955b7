"""One file translated by several processes, on one machine or many that see the same folder: each takes a run of its
lines, and whichever is the last to finish puts the parts together."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from transformer.config import UserError

log = logging.getLogger("transformer")


def parse(text: str) -> tuple[int, int]:
    """'2/8' as (2, 8): the third of eight shares."""
    share, _, shares = text.partition("/")
    if not (share.isdecimal() and shares.isdecimal() and int(share) < int(shares)):
        raise UserError(f"--share {text}: must be I/N with I from 0 to N - 1, such as 0/4")
    return int(share), int(shares)


def translate_share(
    answer: Callable[[BinaryIO, BinaryIO, int], int],
    source: Path,
    target: Path,
    share: int,
    shares: int,
    about: str = "",
) -> None:
    """Translate one share of the lines of `source`; write `target` if no other share is missing.

    `answer(lines in, lines out, number of the first line)` is what one process would call for the whole file. A part is
    written beside the target, under a name that holds the digest of the source and of `about`, which says all else that
    the output depends on; it counts once it is complete: after an interruption only the missing shares need to run
    again.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"--input {source}: {error.strerror}") from None
    if target.exists():
        raise UserError(f"--output {target} exists; name another file, or remove it")
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    digest = hashlib.sha256(content + about.encode()).hexdigest()[:12]
    parts = [target.parent / f"{target.name}.{digest}.{i}-of-{shares}" for i in range(shares)]
    first, last = (len(lines) * i // shares for i in (share, share + 1))
    if parts[share].exists():
        log.info("share %d of %d is there already", share, shares)
    else:
        unfinished = parts[share].with_name(parts[share].name + ".unfinished")
        try:
            with unfinished.open("wb") as file:
                answer(io.BytesIO(b"".join(line + b"\n" for line in lines[first:last])), file, first + 1)
        except OSError as error:
            raise UserError(f"--output {target}: {error.strerror}") from None
        unfinished.replace(parts[share])
        log.info("share %d of %d: lines %d to %d are done", share, shares, first + 1, last)
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    if missing and not target.exists():
        log.info("the output follows when these shares are done: %s", ", ".join(map(str, missing)))
        return
    together = target.with_name(f"{target.name}.{os.getpid()}.together")
    try:
        with together.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
    except FileNotFoundError:
        # Another process was as quick, and has put them together.
        together.unlink(missing_ok=True)
        return
    together.replace(target)
    for part in parts:
        part.unlink(missing_ok=True)
    log.info("%s is complete", target)
