"""Rows of figures in `results/*.jsonl`, each with what it takes to measure it again."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from side_by_side import HERE, machine

from transformer.files import append, synced


class Rows:
    """A file of rows, one JSON object a line; each is on the disk as soon as it is added."""

    def __init__(self, path: str, *, device: str | None = None, commit: str | None = None):
        """`device`: the name of what computes; by default that of JAX's first device, or of the processor."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._about = {
            "command": without_paths(command(sys.argv)),
            "commit": commit or head(),
            "device": device or device_name(),
        }

    def add(self, row: dict[str, Any], copy: Path | None = None) -> dict[str, Any]:
        """Append the row with command, commit, device and date; returns it so. The file `copy` gets it first."""
        row = {**without_paths(row), **self._about, "date": datetime.date.today().isoformat()}
        for path in (copy, self._path) if copy else (self._path,):
            append(path, json.dumps(row, ensure_ascii=False))
            synced(path)
        return row

    def add_missing(self, copy: Path) -> list[dict[str, Any]]:
        """Append the rows of the file `copy` that are not here, as they are. Returns all rows of `copy`."""
        here, there = (path.read_text().split("\n") if path.exists() else [] for path in (self._path, copy))
        found = []
        for line in there:
            with contextlib.suppress(ValueError):  # half a line, or what follows the last one
                found.append(json.loads(line))
                if line not in here:
                    append(self._path, line)
                    synced(self._path)
        return found


def command(argv: list[str]) -> str:
    """The command line, without the files that rows and logs go to."""
    kept, skip = [], False
    for argument in argv[1:]:
        if not skip and argument.split("=")[0] not in ("--rows", "--log"):
            kept.append(argument)
        skip = argument in ("--rows", "--log")
    return shlex.join(["python", os.path.relpath(argv[0], HERE.parent), *kept])


def without_paths(value: Any) -> Any:
    """The value with each absolute path in its texts cut down to the last part: rows go to other machines."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w.~/-])/(?:[^\s/,:;'\"]+/)+([^\s/,:;'\"]*)", r"\1", value)
    if isinstance(value, dict):
        return {key: without_paths(x) for key, x in value.items()}
    return [without_paths(x) for x in value] if isinstance(value, list | tuple) else value


def head() -> str:
    """The commit of this checkout, with "-dirty" where files differ from it; "unknown" without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=HERE, capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def device_name() -> str:
    """JAX's first device and how many there are; on a CPU the processor's name and the cores this process may use."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{machine(('jax',))}, {len(os.sched_getaffinity(0))} cores"
    return f"{jax.device_count()} x {device.device_kind}, {machine(('jax',))}"
