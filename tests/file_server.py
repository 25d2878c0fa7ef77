"""A web server on this machine that gives files as it is told, also cut short."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What one download gets.

    Attributes:
        body: the whole file.
        status: of the answer; 206 is chosen by itself.
        cut: the connection is closed after so many bytes of the body; None sends all.
        waits: after `cut` bytes, the connection stays open until the server is closed.
    """

    body: bytes = b""
    status: int = 200
    cut: int | None = None
    waits: bool = False


class Server:
    """Context in which it runs.

    Attributes:
        requests: (path, Range header or "") of each download so far.
        url: its address.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.is_closing = threading.Event()
        self._answers: dict[str, list[Answer]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def give(self, path: str, *answers: Answer) -> None:
        """Has a path answered, one answer a download, the last for all further ones."""
        self._answers[path] = list(answers)

    def answer(self, path: str, *, is_download: bool) -> Answer:
        """What the next request gets."""
        answers = self._answers.get(path, [Answer(status=404)])
        return answers.pop(0) if is_download and len(answers) > 1 else answers[0]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send("", server.answer(self.path, is_download=False), is_download=False)

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            server.requests.append((self.path, asked))
            with contextlib.suppress(ConnectionError):  # the client may have gone
                self._send(asked, server.answer(self.path, is_download=True), is_download=True)

        def _send(self, asked: str, answer: Answer, *, is_download: bool) -> None:
            size, start, status = len(answer.body), 0, answer.status
            matched = re.fullmatch(r"bytes=(\d+)-", asked)
            if matched and status == 200:
                start = int(matched[1])
                status = 206 if start < size else 416
            body = answer.body[start:] if status != 416 else b""
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", "abc123")
            self.send_header("ETag", '"1"')
            self.end_headers()
            if is_download:
                self.wfile.write(body[: answer.cut])
            if is_download and answer.waits:
                server.is_closing.wait()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
