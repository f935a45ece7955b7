"""The web application: the page, its files, and the API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from transformer.config import UserError
from transformer.streams import to_json
from transformer.tools.attention.page import resource
from transformer.tools.page.fields import MOST_BYTES, Endpoint, Wrong, read
from transformer.tools.page.guard import Guard, Hosts
from transformer.tools.page.line import Busy, Gone, Line, TooLong
from transformer.tools.page.openapi import PREFIX, document

log = logging.getLogger("transformer")

RETRY_SECONDS = 5
BODY_SECONDS = 10
_FILES = {
    "/": ("text/html; charset=utf-8", ("page.html",), ()),
    "/page.css": ("text/css; charset=utf-8", ("page.css",), ("attention.css",)),
    "/page.js": ("text/javascript; charset=utf-8", ("tree.js", "page.js"), ("attention.js",)),
}
"""Path -> type, files beside this one, and files of the page of attention that precede them."""


def application(endpoints: Mapping[str, Endpoint], model: Mapping[str, Any], hosts: Hosts, line: Line) -> Any:
    """The ASGI application. `model`: what `/api/1/model` answers."""
    described = to_json(document(endpoints)).encode()

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "model":
            read(await _body(request), {})
            return _json(model)
        if name not in endpoints:
            raise Wrong(None, f"this model has no such endpoint; it has model, {', '.join(endpoints)}", 404)
        endpoint = endpoints[name]
        given = read(await _body(request), endpoint.fields)
        found = await line.answer(endpoint.work, endpoint.group(given), given, partial(_gone, request))
        return await asyncio.to_thread(_json, found)  # meanwhile others are answered

    def served(path: str) -> Route:
        kind, own, before = _FILES[path]
        content = "\n".join([*map(resource, before), *((files(__package__) / name).read_text("utf-8") for name in own)])

        async def get(request: Request) -> Response:
            return Response(content, media_type=kind)

        return Route(path, get)

    async def openapi(request: Request) -> Response:
        return Response(described, media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        line.close()

    routes = [*map(served, _FILES), Route(f"{PREFIX}/openapi.json", openapi)]
    routes.append(Route(PREFIX + "/{name}", answer, methods=["POST"]))
    handlers: Any = {HTTPException: _of_path, Exception: _of_error, **{kind: _of_error for kind in _STATUS}}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(app, hosts, _error)


async def _body(request: Request) -> bytes:
    """The body. Raises `Wrong` if it is no JSON or too long."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Wrong(None, "the header Content-Type must be application/json; send JSON", 415)
    too_long = Wrong(None, f"the body has more than {MOST_BYTES:,} bytes; send less text", 413)
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BYTES:
        raise too_long
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > MOST_BYTES:
                    raise too_long
    except TimeoutError:
        raise Wrong(None, f"the body did not arrive within {BODY_SECONDS} s; send it at once", 408) from None
    return body


async def _gone(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- Answers and errors ----------------------------------------------------------------------------------------------


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response((to_json(value) + "\n").encode(), status, headers, "application/json")


def _error(status: int, message: str, field: str | None = None, retry: int | None = None) -> Response:
    """An error as one line of JSON. `retry`: the seconds after which the client may try again."""
    headers = {} if retry is None else {"Retry-After": str(retry)}
    if status in (403, 408, 413, 415):  # the rest of the body is not read
        headers["Connection"] = "close"
    return _json({"error": message} | ({} if field is None else {"field": field}), status, headers)


async def _of_path(request: Request, error: Exception) -> Response:
    """The answer to a wrong path or method."""
    assert isinstance(error, HTTPException)
    wrong = "this path takes another method: POST under /api/1/, else GET" if error.status_code == 405 else "not found"
    answer = _error(error.status_code, wrong)
    answer.headers.update({k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"})
    return answer


_STATUS: tuple[type[Exception], ...] = (UserError, Busy, TooLong, Gone, ClientDisconnect)


async def _of_error(request: Request, error: Exception) -> Response:
    """The answer to an exception. What a text contains never reaches the log."""
    if isinstance(error, Wrong):
        return _error(error.status, str(error), error.field)
    if isinstance(error, UserError):
        return _error(400, str(error))
    if isinstance(error, Busy):
        return _error(503, "too many requests are waiting; try again", None, RETRY_SECONDS)
    if isinstance(error, TooLong):
        if error.begun:
            return _error(504, "this took too long; new options are compiled first: try again, or shorten the text")
        return _error(503, "the requests before this one took too long; try again", None, RETRY_SECONDS)
    if isinstance(error, Gone | ClientDisconnect):
        return Response(status_code=499)
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error("%s of the page: %s at %s:%s", request.url.path, type(error).__name__, where.filename, where.lineno)
    return _error(500, "a fault of the server, not of the request; its log has the place")
