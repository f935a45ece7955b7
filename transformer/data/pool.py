"""Apply a function to chunks of text in several processes. The order of the results does not depend on their number."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from transformer.config import UserError

T = TypeVar("T")
R = TypeVar("R")


def in_processes(
    make: Callable[..., Callable[[T], R]], arguments: tuple, chunks: Iterable[T], workers: int
) -> Iterator[R]:
    """Yield `f(chunk)` for each chunk, in their order, from `workers` processes. Each process has an f of its own,
    `make(*arguments)`.

    At most 4 chunks a process are in flight, which bounds memory. Raises `UserError` if a process is killed.
    """
    # Spawned, not forked: a forked child could wait forever for a lock that one of JAX's threads holds.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make, arguments))
    submit, running = _without_signals(pool.submit), deque()
    try:
        for chunk in chunks:
            running.append(submit(_apply, chunk))
            if len(running) >= 4 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"data.workers: one of {workers} processes that tokenise was killed, perhaps because memory ran out; use "
            "fewer (1 = this process alone)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _without_signals(submit: Callable) -> Callable:
    """`submit`, with Ctrl-C and the hang-up of a terminal blocked in the processes that it starts: only this process
    handles them."""
    blocked = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}

    def submit_blocked(*args: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # a child inherits this mask
        try:
            return submit(*args)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return submit_blocked if hasattr(signal, "pthread_sigmask") else submit


def _start_worker(make: Callable, arguments: tuple) -> None:
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()
    global _function
    _function = make(*arguments)


def _exit_with_parent(sentinel: int) -> None:
    """End this process when its parent ends, also when the parent is killed."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _apply(chunk: Any) -> Any:
    return _function(chunk)
