"""What a run tells while it trains: a bar on a terminal or plain lines, and always JSONL and TensorBoard files."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from transformer.checkpoint import local, replace, writing

log = logging.getLogger("transformer")


class Records:
    """`metrics.jsonl`, one object an entry, and `tensorboard/` in the workdir; entries after `step` are cut off.

    TensorBoard's files, which can't be cut, are made anew from what is left of the other one: so each step stands in
    either exactly once, in order.
    """

    def __init__(self, workdir: epath.Path | None, step: int):
        """None: nothing is kept; of several processes one writes."""
        self._off = workdir is None
        if workdir is None:
            return
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        self._local = local(workdir)
        text = self._path.read_text() if self._path.exists() else ""
        self._lines = [line for line in text.split("\n") if _step(line) <= step]
        if text:
            self._rewrite()  # even if no entry goes: a kill may have left the last one without its end of line
        # A bucket can't be appended to: there JSONL is written whole at each flush, and TensorBoard stays local.
        folder = workdir / "tensorboard" if self._local else tempfile.mkdtemp(prefix="tensorboard-")
        if not self._local:
            log.info("TensorBoard's files of %s are on this machine, in %s", workdir, folder)
        with writing(workdir / "tensorboard"):
            if self._local and self._lines:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            purge = None if self._lines or not step else step + 1  # without the other file there is nothing better
            self._tensorboard = SummaryWriter(str(folder), purge_step=purge, flush_secs=5)
        for line in self._lines:
            self._show(json.loads(line))
        self._fresh: list[str] = []
        self._failed = False

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """One entry: {"step": step, "time": seconds since 1970, **values}. TensorBoard gets what are numbers."""
        if self._off:
            return
        entry = {"step": step, "time": round(time.time(), 3), **values}
        self._fresh.append(json.dumps(entry))
        if self._local:
            self.flush()
        self._show(entry)

    def _show(self, entry: Mapping[str, float | str]) -> None:
        for name, value in entry.items():
            if name not in ("step", "time") and not isinstance(value, str):
                self._tensorboard.add_scalar(name, value, entry["step"], entry.get("time"))

    def flush(self) -> None:
        if self._off:
            return
        # TensorBoard's thread dies of a full disk, and who goes on to write waits for it: our own file fails first.
        self._failed = True
        with writing(self._path):
            if self._local:
                with self._path.open("a") as file:
                    file.write("".join(line + "\n" for line in self._fresh))
            else:
                self._lines += self._fresh
                self._rewrite()
            self._fresh = []
            self._tensorboard.flush()
        self._failed = False

    def close(self) -> None:
        if not self._off and not self._failed:
            self.flush()
            self._tensorboard.close()

    def _rewrite(self) -> None:
        replace(self._path, "".join(line + "\n" for line in self._lines).encode())


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # half a line, left by a kill: cut


class Display:
    """A progress bar on a terminal, nothing elsewhere: there the log's lines tell."""

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
        """At each entry of the log."""
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
        """At each update."""
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
