"""Show how much of a long piece of work is done: as a bar on a terminal, else in the log every 10 seconds."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from transformer.streams import plain

log = logging.getLogger("transformer")


@contextlib.contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` units, such as "pairs", are done."""
    began = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # The title is a field, not part of a format or markup, where a file's name could have a meaning.
        named = TextColumn("{task.fields[title]}", markup=False)
        columns = (named, BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=total, title=plain(title))

            def update_bar(done: int) -> None:
                rate = done / max(time.monotonic() - began, 1e-9)
                progress.update(task, completed=done, description=f"{rate:,.0f} {unit}/s")

            yield update_bar
        return
    reported = began

    def log_rate(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            rate = done / (reported - began)
            log.info("%s: %s of %s %s, %s a second", title, f"{done:,}", f"{total:,}", unit, f"{rate:,.0f}")

    yield log_rate
