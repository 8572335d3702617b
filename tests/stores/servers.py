"""Object stores on this machine: gcp-storage-emulator and moto's server, each behind a front that makes faults.

The emulator lacks two things that Google's store has, and the front adds them: preconditions on uploads
(ifGenerationMatch), and an answer to deletions of what is not there. Everything else passes as it is.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PACKAGES = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto", "flask", "flask_cors")}
BUCKET = "bucket"

Fault = Callable[["Request"], "Answer | str | None"]
"""What a front does with a request: None lets it pass, an `Answer` is given instead, "cut" ends the connection in the
middle of the body."""
Answer = tuple[int, bytes]


class Request:
    def __init__(self, method: str, path: str, size: int):
        self.method, self.size = method, size
        found = urllib.parse.urlsplit(path)
        self.path, self.query = urllib.parse.unquote(found.path), urllib.parse.parse_qs(found.query)
        self.writes = method in ("POST", "PUT")
        self.name = self.path


def missing(scheme: str) -> list[str]:
    return [name for name in PACKAGES[scheme] if importlib.util.find_spec(name) is None]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A store in its own process, and the front that clients speak to.

    Args:
      scheme: gs or s3.
      folder: where the emulator keeps its objects, so that it can be killed and started again; moto keeps nothing.
    """

    def __init__(self, scheme: str, folder: Path):
        self.scheme, self._folder, self._port = scheme, folder, free_port()
        self.fault: Fault | None = None
        self.seen: list[Request] = []
        self.start()
        self.front = _Front(("127.0.0.1", 0), _Handler)
        self.front.server, self.front.port = self, self._port
        threading.Thread(target=self.front.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.front.server_address[1]}"
        if scheme == "s3":
            self._send("PUT", f"/{BUCKET}")

    def start(self) -> None:
        port = str(self._port)
        if self.scheme == "gs":
            command = ["-m", "gcp_storage_emulator", "-d", str(self._folder), "start", "-q", "--port", port]
            command += ["--host", "127.0.0.1", "--default-bucket", BUCKET]
        else:
            command = ["-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([sys.executable, *command], stdout=quiet, stderr=quiet, cwd=self._folder)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.front.shutdown()
        self.front.server_close()
        self.kill()

    def _send(self, method: str, path: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", method=method)).close()

    def environment(self) -> dict[str, str]:
        """What a process needs to find the store."""
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": self.url, "GOOGLE_CLOUD_PROJECT": "test"}
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, **keys}

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None


class _Front(ThreadingHTTPServer):
    daemon_threads = True
    server: Server
    port: int

    def __init__(self, *arguments: object):
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.creating = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client was killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Front

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        server = self.server.server
        size = int(self.headers.get("Content-Length") or 0)
        request = Request(self.command, self.path, size)
        server.seen.append(request)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(size // 2)
        if request.path.startswith("/upload"):
            request.name = _named(body)
        answer = server.fault(request) if server.fault is not None else None
        if answer == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if not chunked:
            body += self.rfile.read(size - size // 2)
        if answer is not None:
            assert not isinstance(answer, str)
            self._answer(answer[0], {"Content-Type": "application/json"}, answer[1])
        elif server.scheme == "gs" and request.query.get("ifGenerationMatch") == ["0"]:
            with self.server.creating:
                self._create(body)
        else:
            self._forward(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle  # noqa: N815

    def _create(self, body: bytes) -> None:
        """Google's store answers 412 where the object exists; the emulator would overwrite it."""
        place = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(_named(body), safe='')}"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}{place}").close()
        except urllib.error.HTTPError:
            self._forward(body)
        else:
            self._answer(412, {}, b'{"error": {"code": 412, "message": "conditionNotMet"}}')

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes) -> None:
        skipped = ("connection", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        try:
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            found = upstream.getresponse()
            content = found.read()
            upstream.close()
        except OSError:  # the store is away: so is its front
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(found.status, dict(found.getheaders()), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        skipped = ("connection", "transfer-encoding", "content-length", "server", "date")
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _named(body: bytes) -> str:
    """The name of the object in an upload to Google's store."""
    return body.partition(b'"name": "')[2].partition(b'"')[0].decode()


@contextlib.contextmanager
def running(scheme: str, folder: Path) -> Iterator[Server]:
    """A store that this process and its children find; skips the test where the packages are not installed."""
    import pytest

    if names := missing(scheme):
        reason = f"{', '.join(names)} not installed (pip install -e '.[stores]')"
        if os.environ.get("CI"):
            raise pytest.UsageError(f"tests of {scheme}:// cannot run in CI: {reason}")
        pytest.skip(reason)
    from svt_jax.stores import paths

    server = Server(scheme, folder)
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ.update(server.environment())
    paths.file_system(scheme).clear_instance_cache()
    paths.file_system.cache_clear()
    try:
        yield server
    finally:
        server.close()
        paths.file_system.cache_clear()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
