"""The line that requests wait in: one computation at a time, of all waiting requests that can be computed together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

THREAD = "page"
"""The beginning of the name of the thread that computes."""
MOST_WAITING = 8
SECONDS = 30.0

Work = Callable[[Sequence[Any], threading.Event], Sequence[Any]]
"""From requests and an event that ends the work to a result, or an exception, for each request."""


class Busy(Exception):
    """Too many requests are waiting."""


class TooLong(Exception):
    """A request took too long. `begun`: whether its computation had begun."""

    def __init__(self, begun: bool):
        super().__init__()
        self.begun = begun


class Gone(Exception):
    """The client no longer waits for an answer."""


class _Entry(NamedTuple):
    work: Work
    group: Hashable
    request: Any
    answer: asyncio.Future[Any]


class Line:
    """Use it within one event loop."""

    def __init__(self, most: int = MOST_WAITING, seconds: float = SECONDS):
        """`most`: requests that wait beside those that are computed. `seconds`: the most for an answer."""
        self._most, self._seconds = most, seconds
        self._waiting: list[_Entry] = []
        self._running: list[_Entry] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, THREAD)

    async def answer(self, work: Work, group: Hashable, request: Any, gone: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `work` for a request. Requests with the same `work` and `group` are computed together.

        Raises `Busy`; `TooLong`; `Gone` once the awaitable of `gone` is done; or the exception of the work.
        """
        if len(self._waiting) >= self._most:
            raise Busy
        entry = _Entry(work, group, request, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._begin()
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({entry.answer, leaving}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if entry.answer.done():
                return entry.answer.result()
            if leaving.done():
                raise Gone
            raise TooLong(entry not in self._waiting)
        finally:
            leaving.cancel()
            self._leave(entry)

    def close(self) -> None:
        """End the present computation as soon as possible."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, entry: _Entry) -> None:
        """Forget an entry. The computation ends if nobody waits for it any more."""
        entry.answer.cancel()
        with contextlib.suppress(ValueError):
            self._waiting.remove(entry)
        if self._running and all(each.answer.done() for each in self._running):
            self._stop.set()

    def _begin(self) -> None:
        """Begin with the first entry and all that can be computed with it, unless a computation is running."""
        if self._running or not self._waiting:
            return
        first = self._waiting[0]
        together = [e for e in self._waiting if (e.work, e.group) == (first.work, first.group)]
        self._waiting = [entry for entry in self._waiting if entry not in together]
        self._running, self._stop = together, threading.Event()
        loop, requests = asyncio.get_running_loop(), [entry.request for entry in together]
        self._pool.submit(self._compute, loop, first.work, requests, self._stop)

    def _compute(
        self, loop: asyncio.AbstractEventLoop, work: Work, requests: Sequence[Any], stop: threading.Event
    ) -> None:
        """In the thread: compute, and hand the results to the event loop."""
        try:
            results = list(work(requests, stop))
        except Exception as error:
            results = [error] * len(requests)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._finish, results)

    def _finish(self, results: Sequence[Any]) -> None:
        for entry, result in zip(self._running, results, strict=True):
            if not entry.answer.done():
                if isinstance(result, Exception):
                    entry.answer.set_exception(result)
                else:
                    entry.answer.set_result(result)
        self._running = []
        self._begin()
