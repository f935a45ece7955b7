"""One file translated by several processes, on one machine or on several that share a folder. Each process translates a
range of lines (a share); the last one to finish joins the parts."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transformer.config import UserError, whole_number
from transformer.data.opening import open_text, read_all
from transformer.files import digest as digest_of_file
from transformer.files import synced

log = logging.getLogger("transformer")

_MAX_SHARES = 10_000  # shares
_DIGEST = 64  # bytes at the end of a part: the sha256 of the end of its name and of the translations before it


def parse(text: str) -> tuple[int, int]:
    """'2/8' as (2, 8): the third of eight shares. Raises `UserError` for anything else."""
    numbers = [whole_number(number) for number in text.split("/")]
    if len(numbers) != 2 or None in numbers or not numbers[0] < numbers[1]:
        raise UserError(f"--share {text}: must be I/N with I from 0 to N - 1, such as 0/4")
    if numbers[1] > _MAX_SHARES:
        raise UserError(f"--share {text}: there can be {_MAX_SHARES:,} shares at most")
    return numbers[0], numbers[1]


def refuse(source: Path, target: Path, shares: int) -> None:
    """Raise `UserError` if the input cannot be read or the output cannot be written."""
    try:
        if not stat.S_ISREG(source.stat().st_mode) and not source.is_dir():  # a pipe can be opened only once
            if shares > 1:
                reason = f"a pipe or a device, which {shares} shares can't each read"
                raise UserError(f"{source}: {reason}; write it to a file first, or leave out --share")
        else:
            open_text(source).close()
    except UserError as error:
        raise UserError(f"--input {error}") from None
    except OSError as error:
        raise UserError(f"--input {source}: {error.strerror}") from None
    if target.exists() and not target.is_file() and not target.is_dir():
        reason = "a pipe or a device; leave out --input and --output, and write: translate WORKDIR < IN > OUT"
        raise UserError(f"--output {target}: {reason}")
    if os.path.lexists(target):  # a link to nothing, too
        raise UserError(f"--output {target} exists; name another file, or remove it")
    if not target.parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.parent}")


def translate_share(
    answer: Callable[[BinaryIO, BinaryIO, int], int],
    source: Path,
    target: Path,
    share: int,
    shares: int,
    about: str = "",
    check: Callable[[Sequence[bytes]], None] | None = None,
) -> None:
    """Translate one share of the lines of `source`. If no other share is missing, join the parts into `target`.

    `source` may be compressed (see `open_text`); a pipe can be read only once, so it has one share.
    `answer(lines in, lines out, number of the first line)` translates lines. Before that, `check(all lines)` raises
    `UserError` for one that can't be translated. `about`: a text that holds everything else that the output depends on.
    The part is written beside the target; its name contains a digest of the source and of `about`. It ends with a
    digest of its content and is valid while that is right: after an interruption, only the missing shares need to run
    again. Several processes may translate the same share. Raises `UserError`.
    """
    refuse(source, target, shares)
    content = read_all(source)
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    try:
        if check is not None:
            check(lines)
    except UserError as error:
        raise UserError(f"--input {source}: {error}") from None
    digest = hashlib.sha256(content + about.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    parts = [target.parent / f"{target.name}.{digest}.{i}-of-{shares}" for i in range(shares)]
    first, last = (len(lines) * i // shares for i in (share, share + 1))
    if _finished(parts[share]) is not None:
        log.info("share %d of %d is done already", share, shares)
    else:
        _translate(answer, lines[first:last], first + 1, parts[share], target)
        log.info("share %d of %d: lines %d to %d are done", share, shares, first + 1, last)
    if target.exists():  # written by a process that had this share, too: then it contains the same as this part
        _require_same(target, first, _finished(parts[share]))
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    if missing and not target.exists():
        log.info("the output follows when these shares are done: %s", ", ".join(map(str, missing)))
        every = target.parent.glob(f"{glob.escape(target.name)}.*-of-{shares}")
        if others := sorted(path.name for path in every if path not in parts):
            log.warning("these parts are of another input, model, options or type, and not used: %s", ", ".join(others))
        return
    if _join(parts, target, digest):
        log.info("%s is complete", target)
    # The parts, and the files that killed processes have left.
    for path in target.parent.glob(f"{glob.escape(target.name)}.{digest}.*"):
        path.unlink(missing_ok=True)


def _translate(answer: Callable, lines: list[bytes], first: int, part: Path, target: Path) -> None:
    """Write a part, with its digest at its end."""
    # Not the process number: it may be the same on several machines or containers.
    unfinished = part.with_name(f"{part.name}.{uuid.uuid4().hex}.unfinished")
    try:
        output = _Output(unfinished, target, _share_of(part))
        with io.BufferedWriter(output) as file:
            answer(io.BytesIO(b"".join(line + b"\n" for line in lines)), file, first)
            file.flush()
            file.write(output.sha256.hexdigest().encode())
        # The file is gone if a process that had this share, too, has completed the output meanwhile.
        with _output_errors(target), contextlib.suppress(FileNotFoundError):
            synced(unfinished)
            if _finished(unfinished, _share_of(part)) is None:
                raise _disk_error(target)
            unfinished.replace(part)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _share_of(part: Path) -> bytes:
    """The end of a part's name, DIGEST.I-of-N: its translation and its share.

    The part's own digest includes it, so a renamed part is not taken for another translation or another share.
    """
    return ".".join(part.name.split(".")[-2:]).encode()


def _disk_error(target: Path) -> UserError:
    return UserError(f"--output {target}: the disk does not keep what is written to it; name a file on another disk")


def _occupied(target: Path) -> UserError:
    return UserError(
        f"--output {target}: another file has appeared there and is not overwritten; move it away, then run the same "
        "command again: the translated parts are kept beside it"
    )


def _finished(part: Path, which: bytes | None = None) -> bytes | None:
    """The translations in a part; None if the part is missing or damaged. A damaged part is removed, with a warning.

    `which`: translation and share of the part, see `_share_of`; by default taken from its name.
    """
    try:
        content = part.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{part} cannot be read ({error.strerror or error}); repair or remove it") from None
    translations, digest = content[:-_DIGEST], content[-_DIGEST:]
    sha256 = hashlib.sha256(_share_of(part) if which is None else which)
    sha256.update(translations)
    if sha256.hexdigest().encode() == digest:
        return translations
    log.warning("%s is damaged: its share must be translated again", part)
    part.unlink(missing_ok=True)
    return None


def _require_same(target: Path, first: int, translations: bytes | None) -> None:
    """Raise `UserError` unless the existing output has these translations from line `first` (from 0) on.

    `translations`: None if the process that completed the output has already removed the part.
    """
    if translations is None:
        return
    try:
        lines = target.read_bytes().split(b"\n")
    except OSError:  # for example, a folder
        raise _occupied(target) from None
    count = translations.count(b"\n")
    if lines[first : first + count] != translations.split(b"\n")[:-1]:
        raise _occupied(target)


def _join(parts: Sequence[Path], target: Path, digest: str) -> bool:
    """Write the output from all parts. Returns False if another process has written it meanwhile.

    Raises `UserError` if a part is missing or damaged, or if another file has appeared at `target`.
    """
    joined = target.with_name(f"{target.name}.{digest}.{uuid.uuid4().hex}.together")
    try:
        with io.BufferedWriter(output := _Output(joined, target)) as file:
            for i, part in enumerate(parts):
                if (translations := _finished(part)) is None:
                    if target.exists():
                        return False
                    raise UserError(
                        f"--output {target}: share {i} is missing; translate it with --share {i}/{len(parts)}"
                    )
                file.write(translations)
        synced(joined)
        written = digest_of_file(joined)
        if written["sha256"] != output.sha256.hexdigest():
            raise _disk_error(target)
        return _rename_to_new(joined, target, written)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and target.exists():
            return False
        raise UserError(f"--output {target}: {error.strerror}") from None
    finally:
        joined.unlink(missing_ok=True)


def _rename_to_new(path: Path, target: Path, written: dict[str, Any]) -> bool:
    """Rename a file without overwriting another one. Returns False if a file with the same content is there.

    Raises `UserError` if another file is there.
    """
    try:
        os.link(path, target)
    except FileExistsError:
        if target.is_file() and digest_of_file(target) == written:
            return False
        raise _occupied(target) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise _occupied(target) from None
        path.replace(target)
    synced(target.parent)
    return True


class _Output(io.FileIO):
    """A new file. Its own errors become a `UserError`; other errors of the writing code stay unchanged."""

    def __init__(self, path: Path, target: Path, seed: bytes = b""):
        """`sha256` is computed over `seed` and all that is written."""
        self._target, self.sha256 = target, hashlib.sha256(seed)
        with _output_errors(target):
            super().__init__(path, "x")

    def write(self, data: Any) -> int:
        with _output_errors(self._target):
            count = super().write(data)
        self.sha256.update(memoryview(data)[:count])
        return count

    def close(self) -> None:
        with _output_errors(self._target):
            super().close()


@contextlib.contextmanager
def _output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {target}: {error.strerror}") from None
