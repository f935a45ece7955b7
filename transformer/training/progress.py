"""The progress of a run: what its checkpoints save of it, means for the log, the progress bar, and traces."""

from __future__ import annotations

import collections
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from transformer.judging import Judge
from transformer.training.processes import first

log = logging.getLogger("transformer")


@dataclass
class Progress:
    """The state of a run besides parameters and optimizer; a checkpoint saves it as progress.json."""

    run: str
    """A random name, the same in all checkpoints of a run."""
    machine: dict[str, int | str]
    data_digest: str
    vocab_size: int
    judge: Judge
    interval: Interval
    skipped: int
    """The number of updates whose loss or gradient was not finite; they changed nothing."""
    left_out: set[int]
    """Updates to leave out, because their loss or gradient was not finite in an earlier try."""
    owed: dict[str, float] | None
    """The log entry of the last update, if its evaluation was interrupted; else None."""

    def saved(self, step: int, epoch: int, index: int, scores: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
        """The content of progress.json after update `step`, the `index`-th of its epoch.

        `scores`: those of the evaluation after this update, if there was one. `more`: further entries.
        """
        return {
            "step": step,
            "epoch": epoch,
            "batch_of_epoch": index,
            **self.judge.progress(scores),
            "interval": self.interval.sums,
            "skipped": self.skipped,
            "left_out": sorted(self.left_out),
            "vocab_size": self.vocab_size,
            "data_digest": self.data_digest,
            "run": self.run,
            "machine": self.machine,
            **more,
        }


class Interval:
    """Means over the updates since the last log entry. Checkpoints save `sums`, so that a resumed run loses none."""

    def __init__(self, sums: dict[str, float]):
        self.sums = dict(sums)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start the rates again, so that they do not count time that was not training."""
        self._began, self._tokens, self._flops = time.monotonic(), 0.0, 0.0

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds in the rates."""
        self._began += seconds

    def add(self, values: dict[str, float], flops: float = 0.0) -> None:
        for name in ("loss", "nll"):
            mean = values[name] if name == "loss" else values[name] / max(values["weight"], 1.0)
            self.sums[name] = self.sums.get(name, 0.0) + mean
        self.sums["gradient_norm"] = self.sums.get("gradient_norm", 0.0) + values["gradient_norm"]
        self.sums["updates"] = self.sums.get("updates", 0.0) + 1
        self._tokens += values["tokens"]
        self._flops += flops

    def close(self, peak_flops: float = 0.0) -> dict[str, float]:
        """Return the means and rates, and start the next interval.

        The rates are "tokens_per_second", without padding, and, if `peak_flops` (FLOP/s of all devices) is given,
        "mfu": the model FLOPs per second as a share of that peak.
        """
        n = self.sums.pop("updates")
        means = {name: total / n for name, total in self.sums.items()}
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = {"tokens_per_second": self._tokens / seconds}
        if peak_flops:
            rates["mfu"] = self._flops / seconds / peak_flops
        self.sums = {}
        self.restart_clock()
        return {**means, **rates}


class Watch:
    """Detects jumps of the loss."""

    def __init__(self) -> None:
        self._recent: collections.deque[float] = collections.deque(maxlen=50)

    def jump(self, loss: float) -> float | None:
        """The mean loss of the last 10 updates, if this loss is far above it; else None.

        Far: by a tenth of the mean and by 6 standard deviations between updates.
        """
        usual = None
        if len(self._recent) >= 20:
            mean = float(np.mean(list(self._recent)[-10:]))
            # Of differences, so that a falling loss does not count as spread.
            spread = float(np.std(np.diff(self._recent))) / 2**0.5
            usual = mean if loss > mean + max(6 * spread, 0.1 * mean) else None
        self._recent.append(loss)
        return usual


class Display:
    """A progress bar on a terminal; elsewhere, lines in the log."""

    def __init__(self, step: int, steps: int):
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("compiling", total=steps, completed=step)
            self._bar.start()

    def show(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Show a log entry. `seconds_left`: the estimated time to the end of training."""
        text = (
            f"loss {values['loss']:.3f}  lr {values['learning_rate']:.2e}  "
            f"gradient {values['gradient_norm']:.2f}  {values['tokens_per_second']:,.0f} tokens/s"
        )
        if "mfu" in values:
            text += f"  {values['mfu']:.0%} of peak"
        if self._bar is None:
            log.info("step %d  %s  %s left", step, text, clock(seconds_left))
        else:
            self._bar.update(self._task, completed=step, description=text)

    def advance(self, step: int) -> None:
        """Show that update `step` is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Trace:
    """A trace of some updates for xprof or Perfetto, in the folder `profile` of the workdir. Process 0 writes it."""

    def __init__(self, updates: tuple[int, int] | None, start: int, steps: int, folder: epath.Path):
        """`updates`: the first and the last update to trace. The run makes updates `start` + 1 to `steps`."""
        if updates and not (start < updates[1] and updates[0] <= steps):
            log.warning("no trace is written: updates %d to %d are not among %d to %d", *updates, start + 1, steps)
            updates = None
        self.first, self.last = (max(updates[0], start + 1), updates[1]) if updates else (0, 0)
        self._folder, self._running = folder / "profile", False

    def start(self) -> None:
        if first():
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def stop(self, step: int) -> None:
        """Write the trace, which ends with update `step`; do nothing if none was started."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("the trace of updates %d to %d is in %s", self.first, step, self._folder)
