"""Connections that send no request keep nobody away, and too many open files are one line."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact
from kdedge.serving.limits import RequestLimits
from kdedge.serving.server import Server

Start = Callable[[int], tuple[Any, str]]

HALF = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-"
REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
NO_BODY = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


@pytest.fixture
def url(artifact: Artifact) -> Iterator[str]:
    """A server that waits half a second for headers."""
    address: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "limits": RequestLimits()}
    with Server(lambda: artifact.path, Classifier.load, **address, headers_s=0.5) as server:
        yield server.url


@pytest.mark.parametrize(
    "data",
    [b"", HALF, REQUEST, REQUEST + HALF],
    ids=["nothing", "half a header", "a request", "a request and a half"],
)
def test_a_connection_without_further_headers_is_closed(raw: Any, url: str, data: bytes) -> None:
    began = time.monotonic()
    found = raw(url, data)
    assert time.monotonic() - began < 10
    assert found.count(b"HTTP/1.1 200 ") == data.count(REQUEST)


def test_headers_that_trickle_are_given_up(raw: Any, url: str) -> None:
    began = time.monotonic()
    assert raw(url, HALF + b"a" * 400, every_s=0.05) == b""
    assert time.monotonic() - began < 10


def test_a_body_may_take_longer_than_headers(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(NO_BODY)
        time.sleep(1)
        client.sendall(b"no image!")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.fixture
def start(_forking: Any, artifact: Artifact, tmp_path: Path) -> Iterator[Start]:
    """Starts `kdedge serve` under a limit of open files; gives the process and its address."""
    started = []

    def start_server(n_files: int) -> tuple[Any, str]:
        script = tmp_path / "limited.py"
        script.write_text(
            "import resource\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({n_files}, {n_files}))\n"
            "from kdedge.cli.main import main\n"
            "main()\n"
        )
        arguments = ("serve", str(artifact.path), "--port", "0")
        process = _forking.start(*arguments, cwd=tmp_path, script=script)
        started.append(process)
        process.wait_until(lambda: "\n" in process.stdout)
        assert process.stdout.startswith("Serving "), process.stderr
        return process, process.stdout.split()[3].rstrip(",")

    yield start_server
    for process in started:
        process.send(signal.SIGKILL)
        process.wait()


def send_from_many(url: str, n: int, data: bytes) -> ExitStack:
    """Opens connections that send this and stay open until the context ends."""
    host, port = url.removeprefix("http://").split(":")
    clients = ExitStack()
    for _ in range(n):
        client = clients.enter_context(socket.create_connection((host, int(port)), timeout=20))
        client.sendall(data)
    return clients


def test_more_idle_connections_than_open_files_keep_no_request_away(start: Start, ask: Any) -> None:
    process, url = start(256)
    with send_from_many(url, 320, HALF):
        for _ in range(3):
            assert ask(url, "/v2/health/live").status == 200
    assert process.stderr == ""


def test_too_many_open_files_are_one_line_a_second(start: Start, ask: Any) -> None:
    line = "kdedge: error: New connections have to wait: too many open files. Raise `ulimit -n`.\n"
    process, url = start(32)
    with send_from_many(url, 48, NO_BODY):
        process.wait_until(lambda: process.stderr.count(line) >= 2)
        time.sleep(1)
        text = process.stderr
    assert 2 <= text.count(line) <= 4
    assert "Traceback" not in text
    assert ask(url, "/v2/health/live").status == 200  # once they are gone
