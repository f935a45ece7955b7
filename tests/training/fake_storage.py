"""A storage server with the part of Google Cloud Storage's JSON interface that gcsfs and TensorStore use."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeStorage(ThreadingHTTPServer):
    """Objects in memory: name -> (content, generation). The bucket may have any name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.forbidden = False
        """Refuse whatever is asked."""
        self.lock, self.counter = threading.RLock(), itertools.count(1)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close their connection."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeStorage

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: object = b"", **headers: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def describe(self, name: str) -> dict[str, str]:
        content, generation = self.server.objects[name]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        always = {"kind": "storage#object", "bucket": "bucket", "storageClass": "STANDARD", "metageneration": "1"}
        times = {"timeCreated": "2020-01-01T00:00:00.000Z", "updated": "2020-01-01T00:00:00.000Z"}
        return {
            **always,
            **times,
            **{"name": name, "id": name, "size": str(len(content)), "md5Hash": md5, "generation": str(generation)},
        }

    def allowed(self, name: str) -> bool:
        generation = self.server.objects.get(name, (b"", 0))[1]
        match, other = self.query.get("ifGenerationMatch"), self.query.get("ifGenerationNotMatch")
        return (match is None or int(match) == generation) and (other is None or int(other) != generation)

    def store(self, name: str, content: bytes) -> None:
        if not self.allowed(name):
            return self.answer(412, {"error": {"code": 412, "message": "precondition"}})
        self.server.objects[name] = content, next(self.server.counter)
        self.answer(200, self.describe(name), x_goog_generation=self.server.objects[name][1])

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.server.lock:
            if self.server.forbidden:
                return self.answer(403, {"error": {"code": 403, "message": "no access"}})
            self.route(url.path)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def route(self, path: str) -> None:
        objects = self.server.objects
        if path.startswith("/batch/"):
            return self.batch()
        if path.startswith("/upload/") or "upload_id" in self.query:
            return self.upload()
        copied = r"/storage/v1/b/[^/]+/o/([^/]+)/(?:rewriteTo|copyTo|moveTo)/(?:b/[^/]+/)?o/([^/]+)"
        if found := re.fullmatch(copied, path):
            source, target = map(unquote, found.groups())
            if source not in objects:
                return self.answer(404, {"error": {"code": 404}})
            objects[target] = objects[source][0], next(self.server.counter)
            if "/moveTo/" in path:
                del objects[source]
            return self.answer(200, {"done": True, "resource": self.describe(target), **self.describe(target)})
        if found := re.fullmatch(r"(?:/storage/v1/b/[^/]+/o|/download/storage/v1/b/[^/]+/o)/(.+)", path):
            return self.object(unquote(found[1]))
        if re.fullmatch(r"/storage/v1/b/[^/]+/o/?", path):
            return self.list()
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            return self.answer(200, {"kind": "storage#bucket", "name": found[1], "location": "US"})
        self.answer(501, {"error": {"code": 501, "message": f"{self.command} {path}"}})

    def object(self, name: str) -> None:
        if name not in self.server.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"no such object {name}"}})
        content, generation = self.server.objects[name]
        if self.command == "DELETE":
            if not self.allowed(name):
                return self.answer(412, {"error": {"code": 412}})
            del self.server.objects[name]
            return self.answer(204)
        if not self.allowed(name):
            return self.answer(304 if "ifGenerationNotMatch" in self.query else 412, b"")
        if self.query.get("alt") != "media":
            return self.answer(200, self.describe(name))
        code, headers = 200, {"x_goog_generation": generation, "x_goog_stored_content_length": len(content)}
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            total = len(content)
            first = int(found[1]) if found[1] else max(0, total - int(found[2]))
            last = min(int(found[2]), total - 1) if found[1] and found[2] else total - 1
            if first >= total and total:
                return self.answer(416, b"")
            code, content = 206, content[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{last}/{total}"
        self.answer(code, content, **headers)

    def list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(name))
        answer = {"kind": "storage#objects", "items": items} | ({"prefixes": sorted(prefixes)} if prefixes else {})
        self.answer(200, answer)

    def upload(self) -> None:
        kind = self.query.get("uploadType")
        if upload := self.query.get("upload_id"):
            name, content = self.server.uploads[upload]
            content += self.body
            if re.fullmatch(r"bytes (\d+-\d+|\*)/\d+", self.headers.get("Content-Range") or "bytes */0"):
                return self.store(name, bytes(content))
            return self.answer(308, b"", Range=f"bytes=0-{len(content) - 1}")
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            parts = self.body.split(b"--" + boundary)[1:3]
            meta, content = (re.split(rb"\r?\n\r?\n", part.lstrip(b"\r\n"), maxsplit=1)[1] for part in parts)
            return self.store(json.loads(meta)["name"], re.sub(rb"\r?\n$", b"", content))
        if kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            upload = str(next(self.server.counter))
            self.server.uploads[upload] = name, bytearray()
            url = f"http://{self.headers['Host']}/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={upload}"
            return self.answer(200, {}, Location=url)
        self.store(self.query["name"], self.body)

    def batch(self) -> None:
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
        answers = []
        for path in re.findall(rb"DELETE (\S+) HTTP", self.body):
            name = unquote(urlsplit(path.decode()).path.split("/o/", 1)[1])
            code = 204 if self.server.objects.pop(name, None) else 404
            answers.append(f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} X\r\n\r\n\r\n")
        content = ("".join(answers) + f"--{boundary}--\r\n").encode()
        self.answer(200, content, Content_Type=f"multipart/mixed; boundary={boundary}")
