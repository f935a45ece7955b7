"""What the parts of gpu.py share: their settings, workers with a time limit, turns between them, rates."""

from __future__ import annotations

import importlib.util
import os
import select
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import Worker

from transformer.config import UserError

BEGAN = time.monotonic()  # of a part: this is the first that it imports
STARTING, MEASURING = 20, 3  # seconds before the end of a part by which its systems have started, and are measured
Emit = Callable[[dict[str, Any]], None]


class Settings(NamedTuple):
    """What gpu.py tells a part."""

    seed: int
    quick: bool
    device: str
    """"cuda" or "cpu"."""
    limit: float
    """Seconds until the process is killed."""
    folder: str
    """Of temporary files, which all parts share."""
    text: str | None
    """The folder of wmt_mini and newstest."""
    known: dict[str, float]
    """Figures of earlier parts: FLOP/s by type, bytes a second as "bandwidth", target pieces a second by model."""
    model: str = "base"
    systems: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def end(self) -> float:
        """When the process is killed, by the monotonic clock."""
        return BEGAN + self.limit


# ---- Systems in processes of their own -------------------------------------------------------------------------------
class Timed(Worker):
    """A worker that is killed where it does not answer by `end`, by the monotonic clock; then `UserError` is raised."""

    def __init__(self, script: str, name: str, end: float, environment: dict[str, str] | None = None, **settings: Any):
        self.end = end
        super().__init__(script, name, environment, **settings)

    def _read(self) -> Any:
        # One line answers one request: the buffer behind the pipe never holds another.
        readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, self.end - time.monotonic()))
        if not readable:
            self._process.kill()
            raise UserError(f"{self.name} took too long and was stopped")
        return super()._read()


def at_once(starts: dict[Any, Callable[[], Any]], failed: Callable[[Any, str], None]) -> dict[Any, Any]:
    """What each of the functions returns, all called at once in threads; `failed` is called for those that fail."""
    done = {}
    with ThreadPoolExecutor(max(1, len(starts))) as pool:
        for key, future in {key: pool.submit(start) for key, start in starts.items()}.items():
            try:
                done[key] = future.result()
            except (UserError, OSError, ValueError) as error:
                failed(key, str(error))
    return done


def turns(
    s: Settings, workers: dict[Any, Timed], ask: Callable[..., Any], repeats: int, failed: Callable[[Any, str], None]
) -> dict[Any, list[Any]]:
    """What `ask(key, worker)` returns, `repeats` times for each worker, in turns; without the workers that fail."""
    runs: dict[Any, list[Any]] = {key: [] for key in workers}
    for worker in workers.values():
        worker.end = s.end - MEASURING
    for turn in range(repeats):
        order = list(runs)[turn % max(1, len(runs)) :] + list(runs)[: turn % max(1, len(runs))]
        for key in order:
            try:
                runs[key].append(ask(key, workers[key]))
            except (UserError, OSError, ValueError) as error:
                del runs[key]
                failed(key, str(error))
    return runs


def missing(*packages: str) -> str | None:
    """The first of these packages that is not installed, as a reason."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed" if absent else None


def rates(runs: list[dict[str, Any]], amount: float) -> dict[str, Any]:
    """The median and the range of `amount` a second."""
    each = [amount / run["seconds"] for run in runs]
    return {
        "tokens_per_s": round(statistics.median(each)),
        "tokens_per_s_range": [round(min(each)), round(max(each))],
    }


def share(amount: float, of: float | None) -> float | None:
    return round(amount / of, 4) if of else None
