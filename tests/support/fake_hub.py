"""A model hub on the loopback interface: one that works, and one for each way of failing, by the name of a model."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STATUS = {"s401": 401, "s403": 403, "s404": 404, "s429": 429, "s500": 500, "s503": 503}
LARGE = 2_000  # bytes from which a file is announced by its SHA-256, as large files on a hub are


class Hub(http.server.ThreadingHTTPServer):
    """Serves `folder`'s models under any name that ends with theirs: `good/NAME` works, `s500/NAME` fails so."""

    daemon_threads = True

    def handle_error(self, *words: object) -> None:
        """A client that went away is what is tested here."""

    folder: Path
    requests: list[str]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        del words

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            way, name = parts[2], parts[3]
        else:
            way, name = parts[0], parts[1]
        if way in STATUS:
            self._send(STATUS[way], b"no", {"Retry-After": "0"}, body)
        elif way == "gated":
            self._send(403, b"no", {"X-Error-Code": "GatedRepo"}, body)
        elif way == "silent":
            time.sleep(30)
        elif way == "rude":
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        elif way == "circle":
            self._send(302, b"", {"Location": self.path}, body)
        elif way == "nonsense":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
            self.close_connection = True
        elif parts[0] == "api":
            self._info(way, name, body)
        else:
            self._file(way, self.server.folder / name / "/".join(parts[4:]), body)

    def _info(self, way: str, name: str, body: bool) -> None:
        if not (self.server.folder / name).is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            return
        siblings = []
        for file in sorted((self.server.folder / name).iterdir()):
            siblings.append({"rfilename": file.name, "size": file.stat().st_size})
        facts = {"id": f"{way}/{name}", "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, way: str, file: Path, body: bool) -> None:
        if not file.parent.is_dir():
            self._send(404, b"no", {"X-Error-Code": "RepoNotFound"}, body)
            return
        if not file.is_file():
            headers = {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"}
            self._send(404, b"no", headers, body)
            return
        data = file.read_bytes()
        if len(data) >= LARGE:
            etag = hashlib.sha256(data).hexdigest()
        else:
            etag = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if way == "swapped" and body:
            data = bytes(reversed(data))
        if way == "bare":
            headers = {}
        length = len(data)
        if way == "broken" and body:
            self._send(200, data[: length // 2], headers | {"Content-Length": str(length)}, body)
            self.close_connection = True
        elif way == "short" and body:
            self._send(200, data[: length // 2], headers, body)
        else:
            self._send(200, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(data)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Hub]]:
    """(address, server) of a hub that has the models in `folder`."""
    with serve(Hub, _Handler) as (address, server):
        server.folder, server.requests = folder, []
        yield address, server


@contextlib.contextmanager
def serve(kind: Any, handler: Any) -> Iterator[tuple[str, Any]]:
    server = kind(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
