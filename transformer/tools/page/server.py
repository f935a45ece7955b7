"""The server: where it listens, how it begins, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from transformer.config import UserError
from transformer.tools.page.guard import Hosts
from transformer.tools.page.line import SECONDS, THREAD

CONNECTIONS = 256
"""The most connections at a time."""
REQUEST_SECONDS = 10.0
"""The longest wait for the head of a request."""
ANSWER_SECONDS = 60.0
"""The longest wait for the end of an answer while nothing of it is read."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises `UserError` if none can."""
    try:
        (family, kind, proto, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: unknown; give a name or an address of this machine") from None
    with contextlib.ExitStack() as stack:
        try:
            bound = stack.enter_context(socket.socket(family, kind, proto))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except PermissionError:
            advice = "give one from 1024, or 0 for a free one"
            raise UserError(f"--port {port}: not allowed for this user; {advice}") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"--port {port}: in use on {host}; give another, or 0 for a free one") from None
            raise UserError(f"--host {host}: no address of this machine; give one, such as 127.0.0.1") from None
        stack.pop_all()
    return bound


def hosts_of(bound: socket.socket, host: str) -> Hosts:
    """The names under which a server on this socket may be addressed."""
    return Hosts(host, bound.getsockname()[1])


def address_of(bound: socket.socket, host: str) -> str:
    """The address to open in a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{bound.getsockname()[1]}/"


def server(app: Any, ready: Callable[[], None]) -> uvicorn.Server:
    """The server of an ASGI application. `ready` is called once connections are accepted."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what they log may hold parts of requests
    # Warnings of a computation quote its text: they are for command lines.
    quiet = _NotOf(THREAD)
    for handler in logging.getLogger("transformer").handlers:
        handler.addFilter(quiet)
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=int(SECONDS) + 5,
    )  # fmt: skip
    made = _Server(config)
    made.ready = ready
    return made


def serve(serving: uvicorn.Server, bound: socket.socket) -> None:
    """Answer requests until a signal comes, or `serving.should_exit` is set; then answer those that have begun, and
    send the signal again."""
    asyncio.run(serving.serve([bound]))


class _Server(uvicorn.Server):
    ready: Callable[[], None]

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._since: dict[Any, tuple[Any, float]] = {}  # of each connection: its state, and since when

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:
            self._close_slow()
        return await super().on_tick(counter)

    def _close_slow(self) -> None:
        """Close connections that would take the place of others for ever: clients that send no whole head of a request,
        and those that do not read their answer."""
        now, before, self._since = time.monotonic(), self._since, {}
        for connection in list(self.server_state.connections):
            cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
            state = None if cycle is None or cycle.response_complete else cycle, unread
            was, since = before.get(connection, (state, now))
            self._since[connection] = state, since if state == was else now
            if now - self._since[connection][1] > (REQUEST_SECONDS if state == (None, 0) else ANSWER_SECONDS):
                connection.transport.abort()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready()


class _NotOf(logging.Filter):
    """Drops what a thread with this beginning of its name logs."""

    def __init__(self, thread: str):
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith(self._thread)
