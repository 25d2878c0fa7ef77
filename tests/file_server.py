"""A web server on this machine that gives files as it is told: cut short, moved, changed."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What one request gets.

    Attributes:
        body: the whole file.
        status: of the answer; 206 is chosen by itself.
        headers: more of them.
        cut: the connection is closed after so many bytes of the body; None sends all.
        waits: after `cut` bytes, the connection stays open until the server is closed.
        has_ranges: whether a Range is looked at.
        has_length: whether the size is said.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    waits: bool = False
    has_ranges: bool = True
    has_length: bool = True


class Server:
    """Context in which it runs.

    Args:
        certificate: PEM file with a key, for https; None for http.

    Attributes:
        requests: (path, Range header or "") of each request so far.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.is_closing = threading.Event()
        self._answers: dict[str, list[Answer]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def give(self, path: str, *answers: Answer) -> str:
        """Has a path answered, one answer a request, the last for all further ones."""
        self._answers[path] = list(answers)
        return self.url(path)

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}{path}"

    def next_answer(self, path: str) -> Answer:
        """What the next request gets."""
        answers = self._answers.get(path, [Answer(status=404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            server.requests.append((self.path, asked))
            answer = server.next_answer(self.path)
            with contextlib.suppress(ConnectionError):  # the client may have gone
                self._send(answer, asked)

        def _send(self, answer: Answer, asked: str) -> None:
            size, start, status = len(answer.body), 0, answer.status
            matched = re.fullmatch(r"bytes=(\d+)-", asked)
            if matched and answer.has_ranges and status == 200:
                start = int(matched[1])
                status = 206 if start < size else 416
            body = answer.body[start:] if status != 416 else b""
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if answer.has_length:
                self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: answer.cut])
            if answer.waits:
                server.is_closing.wait()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
