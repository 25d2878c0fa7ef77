"""`kdedge serve`: its address on stdout, its end by signals, and its messages."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.runtime.artifact import Artifact

Run = Callable[..., Any]


@pytest.fixture
def artifact(make_artifact: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    for package in ("onnxruntime", "uvicorn", "httptools", "prometheus_client"):
        pytest.importorskip(package, reason="needs the extras serve and runtime")
    return make_artifact(tmp_path / "art")


def url_of(process: Any) -> str:
    process.wait_until(lambda: "\n" in process.stdout)
    assert process.stdout.startswith("Serving colors at http://127.0.0.1:"), process.stderr
    return process.stdout.split()[3].rstrip(",")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_a_signal_ends_it(
    start: Run, artifact: Artifact, paint: Callable[..., Path], tmp_path: Path, signum: Any
) -> None:
    process = start("serve", str(artifact.path), "--port", "0", cwd=tmp_path)
    data = paint(tmp_path / "red.jpg", (250, 10, 10)).read_bytes()
    with urllib.request.urlopen(f"{url_of(process)}/predict", data) as answer:
        assert json.load(answer)["class"] == "red"
    process.send(signum)
    assert process.wait() == 0
    assert process.stderr == "Finishing the requests in progress, then stopping.\n"


def test_a_second_ctrl_c_does_not_wait(start: Run, artifact: Artifact, tmp_path: Path) -> None:
    process = start("serve", str(artifact.path), "--port", "0", cwd=tmp_path)
    host, port = url_of(process).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        process.send(signal.SIGINT)
        process.wait_until(lambda: "Finishing" in process.stderr)
        process.send(signal.SIGINT)
        assert process.wait() == 130
    assert process.stderr.endswith("kdedge: interrupted.\n")


def test_a_port_in_use(kdedge: Run, artifact: Artifact) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = kdedge("serve", str(artifact.path), "--port", port)
    assert (done.code, done.out) == (8, "")
    assert done.err == (
        f"kdedge: Port {port} of 127.0.0.1 is in use by another program.\n"
        "  Stop that program, or choose another port: --port N (0 for a free one).\n"
    )


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "httptools", "prometheus_client"])
def test_a_missing_package(
    kdedge: Run, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in list(sys.modules):  # as in a new process
        if name.startswith(
            (f"{package}.", "kdedge.serving", "kdedge.api.serve", "kdedge.cli.serve")
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = kdedge("serve", str(artifact.path), "--port", "0")
    assert done.code == 4
    name = package.replace("_", "-")
    assert done.err == (
        f"kdedge: Serving over HTTP needs {name}, which is not installed.\n"
        "  Install it with: pip install 'kdedge[serve]'\n"
    )
