"""The server of the page without a model: bounds, the line of requests, clients that leave, floods, headers."""

import contextlib
import errno
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="needs the extra `page`")
pytest.importorskip("uvicorn", reason="needs the extra `page`")

from schemas import check
from served import serving

from transformer.config import UserError
from transformer.tools.page.fields import NUMBER, TEXT, Endpoint, Field, Wrong, obj
from transformer.tools.page.guard import Hosts
from transformer.tools.page.line import Line
from transformer.tools.page.server import address_of, listening

SECRET = "Geheimnis"


class Works:
    """An endpoint whose work waits until it may go on, and remembers its batches."""

    def __init__(self):
        self.go, self.batches, self.begun, self.stopped = threading.Event(), [], threading.Event(), []
        fields = {
            "text": Field("string", "A text.", needed=True),
            "count": Field("integer", "A number.", least=1, most=9),
            "share": Field("number", "A share.", least=0),
            "sure": Field("boolean", "Whether."),
            "stop": Field("strings", "Ends."),
        }
        answer = obj({"text": TEXT, "count": NUMBER}, ["count"])
        self.endpoints = {"echo": Endpoint("Echo.", fields, answer, self.work, lambda request: request.get("count"))}

    def work(self, requests, stop):
        self.batches.append([request["text"] for request in requests])
        self.begun.set()
        while not self.go.wait(0.01) and not stop.is_set():
            pass
        self.stopped.append(stop.is_set())
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if request["text"] == "wrong":
            return Wrong("text", "is wrong; give another")
        if request["text"] == "fault":
            return ZeroDivisionError(SECRET)
        return UserError("no; yes") if request["text"] == "user" else request


@pytest.fixture
def works():
    one = Works()
    one.go.set()
    return one


@pytest.fixture
def client(works):
    with serving(works.endpoints, {"task": "x"}) as client:
        yield client


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- Requests --------------------------------------------------------------------------------------------------------
WRONG = {
    b'{"text": "a", "count": 10}': ("count", "count: must be a whole number from 1 to 9"),
    b'{"text": "a", "count": true}': ("count", "count: must be a whole number from 1 to 9"),
    b'{"text": "a", "count": 1.5}': ("count", "count: must be a whole number from 1 to 9"),
    b'{"text": "a", "share": -1}': ("share", "share: must be a number, at least 0"),
    b'{"text": "a", "share": "x"}': ("share", "share: must be a number, at least 0"),
    b'{"text": "a", "sure": 1}': ("sure", "sure: must be true or false"),
    b'{"text": "a", "stop": ["a", 1]}': ("stop", "stop: must be a list of at most 8 strings"),
    b'{"text": "a", "stop": ["1","2","3","4","5","6","7","8","9"]}': (
        "stop",
        "stop: must be a list of at most 8 strings",
    ),
    b'{"text": ["a"]}': ("text", "text: must be a string"),
    b'{"text": null}': ("text", "text: must be a string"),
    b"{}": ("text", "text: missing; give a text."),
    b'{"txt": "a"}': ("txt", "txt: unknown; this endpoint takes text, count, share, sure, stop"),
    b'{"<b>Geheimnis": "a"}': ("a field", "a field: unknown; this endpoint takes text, count, share, sure, stop"),
    b'{"text": "wrong"}': ("text", "text: is wrong; give another"),
    b'{"text": "user"}': (None, "no; yes"),
    b'{"text": "a", "text": "b"}': (None, "the body has a field twice; give each field once"),
    b'{"text": NaN}': (None, 'the body is not JSON; send an object such as {"text": "..."}'),
    b'{"text": "Geheimnis': (None, 'the body is not JSON; send an object such as {"text": "..."}'),
    b"[" * 50_000: (None, 'the body is not JSON; send an object such as {"text": "..."}'),
    b"[]": (None, "the body is not a JSON object; send one, with a name for each field"),
    b"": (None, 'the body is not JSON; send an object such as {"text": "..."}'),
    b"\xff": (None, "the body is not valid UTF-8; send JSON in UTF-8"),
}


def test_a_wrong_request_gets_one_line_with_the_field_and_the_fix(client):
    for body, (field, message) in WRONG.items():
        answer = client.post("echo", body=body)
        assert (answer.status, answer.json) == (400, {"error": message} | ({"field": field} if field else {})), body
    assert client.post("echo", {"text": "a", "count": 3, "share": 0, "sure": True, "stop": []}).status == 200


def test_texts_pass_as_they_are(client):
    for text in ("👩‍🚀 é", "</script><script>alert(1)</script>", "\u202eא", "\x00\x1b[31m", "{}", "a\nb"):
        answer = client.post("echo", {"text": text})
        assert answer.json == {"text": text} and answer.text.count("\n") == 1
    assert client.post("echo", body=b'{"text": "\\ud800"}').json == {"text": "?"}


def test_bounds(client):
    for headers, status, said in (
        ({"Content_Type": "text/plain"}, 415, "Content-Type must be application/json"),
        ({"Host": "evil.example"}, 403, "Host"),
        ({"Host": f"evil.example:{client.port}"}, 403, "Host"),
        ({"Host": "127.0.0.1:1"}, 403, "Host"),
        ({"Host": f"user@127.0.0.1:{client.port}"}, 403, "Host"),
        ({"Origin": "http://evil.example"}, 403, "Origin"),
        ({"Origin": "null"}, 403, "Origin"),
        ({"Origin": f"https://127.0.0.1:{client.port}"}, 403, "Origin"),
    ):
        answer = client.post("echo", {"text": "a"}, **headers)
        assert answer.status == status and said in answer.json["error"], headers
    for host in ("localhost", "127.0.0.1", "[::1]"):
        name = f"{host}:{client.port}"
        assert client.post("echo", {"text": "a"}, Host=name, Origin=f"http://{name}").status == 200
    assert client.request("GET", "/", headers={"Host": "evil.example"}).status == 403
    assert client.post("echo", {"text": "a"}, Content_Type="application/json; charset=utf-8").status == 200
    missing = client.post("nothing")
    assert (missing.status, missing.json["error"]) == (404, "this model has no such endpoint; it has model, echo")
    assert client.request("GET", "/other").json == {"error": "not found"}
    wrong = client.request("GET", "/api/1/echo")
    assert wrong.status == 405 and wrong.headers["Allow"] == "POST"
    assert client.request("POST", "/", b"{}").status == 405


def test_a_body_of_more_than_64_kb_is_refused(client):
    most = 64 * 1024
    exact = json.dumps({"text": "x" * (most - 12)}).encode()
    assert len(exact) == most and client.post("echo", body=exact).status == 200
    answer = client.post("echo", body=exact + b" ")
    assert (answer.status, answer.json["error"]) == (413, "the body has more than 65,536 bytes; send less text")
    assert client.post("echo", {"text": "x" * 100_000}).status == 413
    # In chunks, without a length: the rest is not read.
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
        head = f"POST /api/1/echo HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        raw.sendall(b"".join(b"4000\r\n" + b"x" * 0x4000 + b"\r\n" for _ in range(5)))
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive(client, monkeypatch):
    monkeypatch.setattr("transformer.tools.page.app.BODY_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
        head = f"POST /api/1/echo HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
        raw.sendall(f'{head}Content-Length: 99\r\n\r\n{{"text"'.encode())
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_each_answer_has_the_security_headers(client):
    answers = [client.request("GET", path) for path in ("/", "/page.js", "/page.css", "/api/1/openapi.json", "/no")]
    answers += [client.post("echo", {"text": "a"}), client.post("echo", Host="evil"), client.post("echo", {})]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Server"] is None
    html = answers[0].text
    assert not re.search(r"\son\w+=|style=|<style|javascript:|https?:", html)
    assert re.findall(r'(?:src|href)="([^"#]+)"', html) == ["page.css", "data:,", "page.js"]


# ---- The line of requests --------------------------------------------------------------------------------------------
def test_those_that_wait_are_computed_together(works, client):
    works.go.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "echo", {"text": "0"})
        assert works.begun.wait(20)
        others = [pool.submit(client.post, "echo", {"text": str(i), "count": 1 + i % 2}) for i in range(1, 5)]
        time.sleep(0.5)
        works.go.set()
        assert [each.result().json["text"] for each in (first, *others)] == list("01234")
    assert works.batches[0] == ["0"]
    assert sorted(map(sorted, works.batches[1:])) == [["1", "3"], ["2", "4"]]


def test_a_flood_is_refused_and_the_server_lives(works, client):
    """One is computed, 8 wait, all others are refused at once."""
    works.go.clear()
    with ThreadPoolExecutor(60) as pool:
        first = pool.submit(client.post, "echo", {"text": "first"})
        assert works.begun.wait(20)
        began = time.monotonic()
        flood = [pool.submit(client.post, "echo", {"text": f"{i}"}) for i in range(40)]
        wait_for(lambda: sum(each.done() for each in flood) == 32)
        assert time.monotonic() - began < 15
        works.go.set()
        answers = [each.result() for each in flood]
    refused = [answer for answer in answers if answer.status == 503]
    assert len(refused) == 32 and sum(answer.status == 200 for answer in answers) == 8
    assert all(answer.headers["Retry-After"] == "5" for answer in refused)
    assert refused[0].json == {"error": "too many requests are waiting; try again"}
    assert first.result().status == client.post("echo", {"text": "a"}).status == 200
    assert [len(batch) for batch in works.batches] == [1, 8, 1]


def leave(client, body=b'{"text": "gone"}'):
    raw = socket.create_connection(("127.0.0.1", client.port), timeout=30)
    head = f"POST /api/1/echo HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return raw


def test_a_client_that_has_gone_is_dropped(works, client):
    works.go.clear()
    computing = leave(client)
    assert works.begun.wait(20)
    waiting = leave(client, b'{"text": "also gone", "count": 2}')
    time.sleep(0.3)
    waiting.close()
    time.sleep(0.3)
    computing.close()
    wait_for(lambda: works.stopped == [True])  # its computation ends
    works.go.set()
    assert client.post("echo", {"text": "a"}).json == {"text": "a"}
    assert works.batches == [["gone"], ["a"]]


def test_an_answer_takes_30_seconds_at_most(works):
    assert Line()._seconds == 30 and Line()._most == 8
    works.go.clear()
    with serving(works.endpoints, line=Line(seconds=1)) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "echo", {"text": "a"})
        assert works.begun.wait(20)
        works.go.clear()
        assert first.result().status == 504
        assert first.result().json == {
            "error": "this took too long; new options are compiled first: try again, or shorten the text"
        }
        wait_for(lambda: works.stopped == [True])
        works.go.set()
        assert client.post("echo", {"text": "b"}).status == 200


def test_a_fault_is_reported_without_its_text(client, caplog):
    answer = client.post("echo", {"text": "fault"})
    assert answer.status == 500 and answer.json == {
        "error": "a fault of the server, not of the request; its log has the place"
    }
    assert client.post("echo", {"text": "a"}).status == 200
    assert SECRET not in caplog.text and "ZeroDivisionError" in caplog.text


def test_rubbish_on_the_socket(client, capfd):
    for rubbish in (b"\x16\x03\x01 Geheimnis\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"Geheimnis" * 20_000):
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
            raw.sendall(rubbish)
            raw.settimeout(10)
            assert not raw.recv(100).startswith(b"HTTP/1.1 200")
    assert client.post("echo", {"text": "a"}).status == 200
    assert SECRET not in "".join(capfd.readouterr())


def received(raw, seconds=20):
    """What arrives until the server hangs up."""
    raw.settimeout(seconds)
    found = b""
    while block := raw.recv(1 << 20):
        found += block
    return found


def test_a_client_that_sends_no_request_is_dropped(client, monkeypatch):
    """Also one that stops in the middle of a head, or after an answer. Else a few would keep all others out."""
    monkeypatch.setattr("transformer.tools.page.server.REQUEST_SECONDS", 1)
    head = f"GET /page.css HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
    for sent in ("", head, f"{head}\r\n{head}"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
            raw.sendall(sent.encode())
            with contextlib.suppress(ConnectionResetError):
                assert received(raw).count(b"200 OK") == sent.count("\r\n\r\n")
    assert client.post("echo", {"text": "a"}).status == 200


def test_a_client_that_does_not_read_is_dropped(works, client, monkeypatch):
    monkeypatch.setattr("transformer.tools.page.server.ANSWER_SECONDS", 1)
    works.answer = lambda request: {"text": "x" * 50_000_000}
    with leave(client) as raw:
        assert raw.recv(1)
        time.sleep(4)
        with contextlib.suppress(ConnectionResetError):
            assert len(received(raw)) < 40_000_000
    works.answer = lambda request: request
    assert client.post("echo", {"text": "a"}).status == 200


def test_a_large_answer_keeps_nobody_waiting(client, monkeypatch):
    writing = threading.Event()

    def slow(value):
        writing.set()
        time.sleep(3)
        return json.dumps(value)

    monkeypatch.setattr("transformer.tools.page.app.to_json", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "echo", {"text": "a"})
        assert writing.wait(20)
        assert client.request("GET", "/page.css").status == 200 and not answer.done()
        assert answer.result().json == {"text": "a"}


def test_a_body_that_is_no_http_is_no_fault_of_the_server(client, caplog):
    """The answer to the head comes when uvicorn has already refused the body."""
    head = f"POST /api/1/nothing HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as raw:
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
        assert received(raw).startswith(b"HTTP/1.1 400")
    assert client.post("echo", {"text": "a"}).status == 200 and caplog.text == ""


# ---- Where it listens ------------------------------------------------------------------------------------------------
def test_hosts():
    local, everywhere, named = Hosts("127.0.0.1", 80), Hosts("0.0.0.0", 8000), Hosts("box.lan", 8000)
    assert "localhost" in local and "127.0.0.1:80" in local and "192.168.0.2" not in local
    assert "192.168.0.2:8000" in everywhere and "evil.example:8000" not in everywhere
    assert "BOX.lan:8000" in named and "box.lan" not in named and "other.lan:8000" not in named
    for odd in ("", ":8000", "localhost:8000/", "localhost:8000#", "localhost:99999", "[::1", "a b:8000"):
        assert odd not in everywhere, odd
    assert local.origin("http://localhost") and not local.origin("https://localhost") and not local.origin("localhost")


def failing(method, number):
    """A class of sockets that fail when they are made, or at a method."""

    class Failing(socket.socket):
        def __init__(self, *given):
            if method == "socket":
                raise OSError(number, "no")
            super().__init__(socket.AF_INET, *given[1:])

        def bind(self, address):
            raise OSError(number, "no")

    return Failing


def test_a_port_in_use_and_an_unknown_host(monkeypatch):
    with listening("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address_of(bound, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        with pytest.raises(
            UserError, match=rf"^--port {port}: in use on 127.0.0.1; give another, or 0 for a free one$"
        ):
            listening("127.0.0.1", port)
    for host in ("no such host", "nowhere.invalid"):
        with pytest.raises(UserError, match=f"^--host {host}: unknown; give a name or an address of this machine$"):
            listening(host, 0)
    with pytest.raises(UserError, match=r"^--host 192.0.2.1: no address of this machine"):
        listening("192.0.2.1", 0)
    for family, number in (("socket", errno.EAFNOSUPPORT), ("bind", errno.EINVAL)):  # no IPv6; no scope of an address
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"^--host ::1: no address of this machine"):
            patch.setattr(socket, "getaddrinfo", lambda *given, **more: [(socket.AF_INET6, 1, 6, "", ("::1", 0))])
            patch.setattr("transformer.tools.page.server.socket.socket", failing(family, number))
            listening("::1", 0)


def test_the_checker_of_schemas():
    """It finds what does not fit."""
    schema = obj({"a": {"type": "array", "items": {"type": ["integer", "null"]}}, "b": {"enum": ["x"]}}, ["b"])
    check({"a": [1, None], "b": "x"}, schema)
    for wrong in ({}, {"a": [1.5]}, {"a": [True]}, {"a": [], "b": "y"}, {"a": [], "c": 1}, [], {"a": "text"}):
        with pytest.raises(AssertionError):
            check(wrong, schema)
