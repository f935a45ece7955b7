"""The metrics of a run on disk: metrics.jsonl, and the same entries for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from transformer.config import UserError
from transformer.files import Lock, append, local, refuse_links, replace, synced, writing
from transformer.streams import to_json

log = logging.getLogger("transformer")


class Records:
    """Writes `metrics.jsonl`, one object per entry, and `tensorboard/` in the workdir. Removes entries after `step`.

    TensorBoard's files cannot be cut, so they are written again from the remaining entries of `metrics.jsonl`. Both
    then hold each step exactly once, in order.
    """

    def __init__(self, workdir: epath.Path | None, step: int, lock: Lock | None = None):
        """`workdir`: None in processes that write nothing. `lock`: the lock of the workdir, checked before each write.

        Raises `UserError` if metrics.jsonl cannot be read or written.
        """
        self._off, self._lock = workdir is None, lock
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        self._local, self._failed = local(workdir), False
        refuse_links(self._path, workdir / "tensorboard")
        text = self._read()
        *lines, last = text.split("\n")
        entries = {line: _entry(line) for line in (*lines, last)}
        if skipped := sum(entries[line] is None for line in lines):  # not counting the last: a killed run cuts it off
            log.warning("%s: %d lines that are no entries are left out", self._path, skipped)
        self._lines = [line for line in (*lines, last) if (entry := entries[line]) and entry["step"] <= step]
        if text:
            self._rewrite()  # even if it removes no entry: a killed run may have left no newline at the end
        # A file in a bucket can't be appended to. So each flush writes all of metrics.jsonl, and TensorBoard's files
        # stay local.
        folder = Path(workdir / "tensorboard" if self._local else tempfile.mkdtemp(prefix="tensorboard-"))
        if not self._local:
            log.info("TensorBoard's files of %s are on this machine, in %s", workdir, folder)
        with self._writing(workdir / "tensorboard"):
            os.makedirs(folder, exist_ok=True)
            if self._local and (text or not step):
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            # Without metrics.jsonl the old files cannot be rewritten; the new one marks where they stop to count.
            purge_from = step + 1 if step and not text else None
            self._plots = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            with self._plots.open("xb") as file:
                file.write(_first_events(purge_from) + b"".join(_scalars(entries[line]) for line in self._lines))
        self._unflushed: list[str] = []

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write the entry {"step": step, "time": seconds since 1970, **values}. TensorBoard gets its numbers only."""
        if self._off:
            return
        entry = {"step": step, "time": round(time.time(), 3), **values}
        line = to_json(entry)
        if self._local:
            with self._writing(self._path):
                append(self._path, line)
        else:
            self._unflushed.append(line)
        with self._writing(self._plots), self._plots.open("ab") as file:
            file.write(_scalars(entry))

    def flush(self) -> None:
        """Return once all entries are on the disk, or in the bucket."""
        if self._off:
            return
        with self._writing(self._path):
            if not self._local:
                self._lines += self._unflushed
                self._unflushed = []
                self._rewrite()
            elif self._path.exists():
                synced(self._path)

    def close(self) -> None:
        if not self._off and not self._failed:
            self.flush()

    @contextlib.contextmanager
    def _writing(self, path: Any) -> Iterator[None]:
        """`files.writing` after a check of the lock. After an error here, `close` writes nothing more."""
        self._failed = True
        if self._lock is not None:
            self._lock.check()
        with writing(path):
            yield
        self._failed = False

    def _read(self) -> str:
        try:
            return self._path.read_bytes().decode() if self._path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self._path} cannot be read ({error}); repair it, or move it away: then the log begins where "
                "training goes on"
            ) from None

    def _rewrite(self) -> None:
        replace(self._path, "".join(line + "\n" for line in self._lines).encode())


def _entry(line: str) -> dict[str, Any] | None:
    """The entry in a line; None if the line is not a valid entry."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry["step"] < 0:
            return None
        _scalars(entry)  # raises for numbers that TensorBoard's format cannot hold
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return entry


# ---- TensorBoard's files --------------------------------------------------------------------------------------------
# tensorboardX has a writer, too. But it writes in a thread; a full disk ends that thread, and training waits for it
# forever.


def _first_events(purge_from: int | None) -> bytes:
    """The first records of a file. `purge_from`: TensorBoard ignores entries of other files from this step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    if purge_from is not None:
        events.append(Event(wall_time=time.time(), step=purge_from, session_log=SessionLog(status=SessionLog.START)))
    return b"".join(map(_record, events))


def _scalars(entry: Mapping[str, Any]) -> bytes:
    """The records of the numbers in an entry."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    when = {"step": entry["step"], "wall_time": entry.get("time", time.time())}
    return b"".join(
        _record(Event(**when, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))
        for name, value in entry.items()
        if name not in ("step", "time") and isinstance(value, (int, float))
    )


def _record(event: Any) -> bytes:
    """An event in the TFRecord format: length, checksum of the length, content, checksum of the content."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)
