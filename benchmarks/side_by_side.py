"""What the benchmarks share: a process for each system, turns between them, tables, the machine's name."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from transformer.config import UserError

HERE = Path(__file__).resolve().parent


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(**more: str) -> dict[str, str]:
    """This process's, with the project importable."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


# ---- A system in a process of its own --------------------------------------------------------------------------------
class Worker:
    """One system in a process of its own, with one setting. Raises `UserError` where it fails."""

    def __init__(self, script: str, name: str, environment_: Mapping[str, str] | None = None, **settings: Any):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), name, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**(environment_ or {})),
        )  # fmt: skip
        self.ready = self._read()
        """What it had to say when it was ready."""

    def ask(self, request: Any) -> Any:
        """Its answer to a request."""
        # What the others' threads still spin on must be over.
        time.sleep(0.3)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            what = "out of memory, perhaps" if code == -9 else "see above"
            raise UserError(f"the process of {self.name} ended with {code} ({what})")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def answer_requests(start: Callable[..., tuple[Any, Callable[[Any], Any]]], settings: dict[str, Any]) -> None:
    """The other side of a `Worker`: `start(**settings)` gives what to say when ready, and what answers requests.

    An answer, a dictionary, is given with the seconds it took and the peak of resident memory meanwhile.
    """
    # Standard output is for answers alone; whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if settings.get("device", "cpu") == "cpu":  # the same processors for all: XLA has no other way to set its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    ready, system = start(**settings)
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        _reset_peak()
        began = time.perf_counter()
        answer = system(json.loads(line))
        answer = {"seconds": time.perf_counter() - began, "peak_mib": _peak_mib(), **answer}
        print(json.dumps(answer), file=answers, flush=True)
        _give_back()


def _give_back() -> None:
    """Free memory goes back to the system: the next process to take its turn may need it."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    # Linux: 5 resets VmHWM, so that each request has a peak of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    """Peak resident memory since `_reset_peak`, or since the start where the system can't tell."""
    with contextlib.suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def take_turns(workers: Mapping[Any, Worker], request: Any, repeats: int) -> dict[Any, list[dict]]:
    """The answers of each worker to the same request, `repeats` times after one that does not count."""
    runs: dict[Any, list[dict]] = {key: [] for key in workers}
    for turn in range(repeats + 1):
        # Another one is first each time: none always follows the same neighbour.
        order = list(workers)[turn % len(workers) :] + list(workers)[: turn % len(workers)]
        for key in order:
            answer = workers[key].ask(request)
            if turn:
                runs[key].append(answer)
    return runs


# ---- Telling ---------------------------------------------------------------------------------------------------------
def show(rows: Iterator[dict[str, Any]], columns: Mapping[str, int], quiet: bool) -> list[dict[str, Any]]:
    """All rows, each printed as soon as it is there: as a table, on standard error if `quiet`.

    `columns` holds widths, negative to the left; a line of names stands above each group of rows with the same ones.
    """
    done: list[dict[str, Any]] = []
    named: list[str] = []

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(map(str, value.values()))
        return "-".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)

    def line(texts: dict[str, str]) -> str:
        return "  ".join(t.ljust(-columns[c]) if columns[c] < 0 else t.rjust(columns[c]) for c, t in texts.items())

    try:
        for row in rows:
            names = [c for c in columns if c in row]
            out = sys.stderr if quiet else sys.stdout
            if names != named:
                print(line({c: c for c in names}), file=out)
                named = names
            done.append(row)
            print(line({c: text(row[c]) for c in names}), flush=True, file=out)
    except UserError:
        if quiet:  # what was measured is not lost
            print(json.dumps(done))
        raise
    return done


def machine(packages: Sequence[str]) -> str:
    """Processor and versions."""
    model = next((line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")), "")
    versions = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return f"{model or platform.processor()}, Python {platform.python_version()}, {', '.join(versions)}"


def cpuinfo() -> list[str]:
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text().splitlines()
    return []


def require(packages: Sequence[str]) -> None:
    """Raise `UserError` for the first package that is not installed."""
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise UserError(f"{package} is missing: pip install -r benchmarks/requirements.txt") from None
