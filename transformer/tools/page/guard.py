"""What every request passes first: its Host and Origin; and the security headers that every answer gets."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from h11 import LocalProtocolError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Hosts:
    """The names under which the server may be addressed.

    A page of another site can point its own name at this machine (DNS rebinding), but it can't use these names.
    """

    def __init__(self, host: str, port: int):
        """`host`: where the server listens. If that is everywhere, any address of numbers is right, too."""
        self._port = port
        self._names = {host.lower(), *_LOCAL}
        self._any = host in ("0.0.0.0", "::")
        if self._any:
            self._names.add(socket.gethostname().lower())

    def __contains__(self, authority: str) -> bool:
        """Whether this is a name, with the port, of the server: the value of a Host header."""
        try:
            parts = urlsplit(f"//{authority}")
            port, name = parts.port, parts.hostname
        except ValueError:
            return False
        if (
            name is None
            or parts.netloc != authority
            or "@" in authority
            or (80 if port is None else port) != self._port
        ):
            return False
        return name in self._names or (self._any and _is_address(name))

    def origin(self, origin: str) -> bool:
        """Whether this is the origin of the page itself: the value of an Origin header."""
        return origin.startswith("http://") and origin.removeprefix("http://") in self


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: Any, hosts: Hosts, refuse: Callable[[int, str], Any]):
        """`refuse(status, message)`: the answer to a request that is refused, an ASGI application."""
        self._app, self._hosts, self._refuse = app, hosts, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            with contextlib.suppress(LocalProtocolError):  # uvicorn has refused a body that is no HTTP, and hung up
                await send(message)

        refusal = self._refusal(scope["headers"])
        await (self._app if refusal is None else self._refuse(403, refusal))(scope, receive, guarded)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these headers is refused; None if it is not."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "this name of the server is unknown (header Host); use the address that it printed"
        if any(not self._hosts.origin(origin) for origin in origins):
            return "requests of other sites are refused (header Origin); use the page of this server"
        return None
