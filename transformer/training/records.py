"""The log of a run on the disk: metrics.jsonl, and the same for TensorBoard."""

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
    """`metrics.jsonl`, one object an entry, and `tensorboard/` in the workdir; entries after `step` are cut off.

    TensorBoard's files, which can't be cut, are made anew from what is left of the other one: so each step stands in
    either exactly once, in order.
    """

    def __init__(self, workdir: epath.Path | None, step: int, lock: Lock | None = None):
        """None: nothing is kept; of several processes one writes. The workdir's `lock` is checked before each write."""
        self._off, self._lock = workdir is None, lock
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        self._local, self._failed = local(workdir), False
        refuse_links(self._path, workdir / "tensorboard")
        text = self._read()
        *lines, last = text.split("\n")
        entries = {line: _entry(line) for line in (*lines, last)}
        if skipped := sum(entries[line] is None for line in lines):  # half a line at the end was left by a kill
            log.warning("%s: %d lines that are no entries are left out", self._path, skipped)
        self._lines = [line for line in (*lines, last) if (entry := entries[line]) and entry["step"] <= step]
        if text:
            self._rewrite()  # even if no entry goes: a kill may have left the last one without its end of line
        # A bucket can't be appended to: there JSONL is written whole at each flush, and TensorBoard stays local.
        folder = Path(workdir / "tensorboard" if self._local else tempfile.mkdtemp(prefix="tensorboard-"))
        if not self._local:
            log.info("TensorBoard's files of %s are on this machine, in %s", workdir, folder)
        with self._writing(workdir / "tensorboard"):
            os.makedirs(folder, exist_ok=True)
            if self._local and (text or not step):
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            # Without the other file there is nothing better than to say from where the old ones no longer count.
            purge_from = step + 1 if step and not text else None
            self._plots = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            with self._plots.open("xb") as file:
                file.write(_first_events(purge_from) + b"".join(_scalars(entries[line]) for line in self._lines))
        self._unflushed: list[str] = []

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """One entry: {"step": step, "time": seconds since 1970, **values}. TensorBoard gets what are numbers."""
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
        """What was written is on the disk, or in the bucket, when this returns."""
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
        """As `writing`; after an error `close` leaves it at that."""
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
                f"{self._path} cannot be read ({error}); mend it, or move it away: then the log begins where training "
                "goes on"
            ) from None

    def _rewrite(self) -> None:
        replace(self._path, "".join(line + "\n" for line in self._lines).encode())


def _entry(line: str) -> dict[str, Any] | None:
    """The entry that a line holds; None for any other text, which nobody can go on from."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry["step"] < 0:
            return None
        _scalars(entry)  # which takes no numbers beyond its own
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return entry


# ---- TensorBoard's files --------------------------------------------------------------------------------------------
# tensorboardX offers a writer, too: in a thread of its own, which dies of a full disk, and then training waits for it.


def _first_events(purge_from: int | None) -> bytes:
    """What comes first. From the step `purge_from` on, what other files of the folder say does not count."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    if purge_from is not None:
        events.append(Event(wall_time=time.time(), step=purge_from, session_log=SessionLog(status=SessionLog.START)))
    return b"".join(map(_record, events))


def _scalars(entry: Mapping[str, Any]) -> bytes:
    """An entry's numbers."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    when = {"step": entry["step"], "wall_time": entry.get("time", time.time())}
    return b"".join(
        _record(Event(**when, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))
        for name, value in entry.items()
        if name not in ("step", "time") and isinstance(value, (int, float))
    )


def _record(event: Any) -> bytes:
    """TFRecord's framing: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)
