"""A server of the page in a thread of this process, on a free port of loopback, and a client of sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from transformer.tools.page.app import application
from transformer.tools.page.line import Line
from transformer.tools.page.server import hosts_of, listening, serve, server


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        assert self.text.endswith("\n") and self.text.count("\n") == 1
        return json.loads(self.text)


class Client(NamedTuple):
    port: int

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode())
        finally:
            connection.close()

    def post(self, name: str, request: Any = None, body: bytes | None = None, **headers: str) -> Answer:
        body = json.dumps({} if request is None else request).encode() if body is None else body
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/api/1/{name}", body, {"Content-Type": "application/json", **more})


@contextlib.contextmanager
def serving(endpoints: Any, model: Any = None, line: Line | None = None, host: str = "127.0.0.1") -> Iterator[Client]:
    ready = threading.Event()
    with listening(host, 0) as bound:
        app = application(endpoints, model or {}, hosts_of(bound, host), line or Line())
        one = server(app, ready.set)
        thread = threading.Thread(target=serve, args=(one, bound))
        thread.start()
        try:
            assert ready.wait(30)
            yield Client(bound.getsockname()[1])
        finally:
            one.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
