"""Servers of the small artifact that names the color of an image, and what asks them."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact

for _package in ("onnxruntime", "starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extras serve and runtime")
pytest.importorskip("python_multipart", reason="needs the extra serve")

COLORS = {"red": (250, 10, 10), "green": (10, 240, 10), "blue": (5, 5, 250)}


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer of a server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **named: Any
) -> Answer:
    """Asks a server: POST with a body, GET without."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        method = named.pop("method", "GET" if body is None else "POST")
        connection.request(method, path, body, headers or {}, **named)
        found = connection.getresponse()
        names = {name.lower(): value for name, value in found.getheaders()}
        return Answer(found.status, names, found.read())
    finally:
        connection.close()


@pytest.fixture(scope="session", name="ask")
def _ask() -> Callable[..., Answer]:
    return ask


@pytest.fixture(scope="session")
def color_file() -> Callable[[str], bytes]:
    """Gives the JPEG file of an image of one color."""

    def make(name: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (40, 30), COLORS[name]).save(file, "JPEG", quality=95)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def raw() -> Callable[..., bytes]:
    """Sends bytes to a server, and gives what comes back until the connection ends."""

    def talk(url: str, data: bytes, *, every_s: float | None = None) -> bytes:
        host, port = url.removeprefix("http://").split(":")
        got = b""
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            try:
                for part in [data] if every_s is None else [bytes([one]) for one in data]:
                    connection.sendall(part)
                    time.sleep(every_s or 0)
                while more := connection.recv(65536):
                    got += more
            except ConnectionError:
                pass
        return got

    return talk


class GatedBackend:
    """A device that waits before each batch until it may run."""

    name, pixels, image_shape = "gated", "float", (3, 16, 16)

    def __init__(self, artifact: Artifact, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self.batches = artifact.batches
        self._compute = compute
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None
        self.is_closed = self.gives_nan = False

    def run(self, images: np.ndarray) -> np.ndarray:
        assert not self.is_closed
        self.sizes.append(len(images))
        self.begun.release()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        pixels = np.rint(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        logits = self._compute(pixels).astype(np.float32)
        return np.full_like(logits, np.nan) if self.gives_nan else logits

    def describe(self) -> str:
        return "a gated device"

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def gated_backend(
    artifact: Artifact, mean_color_logits: Callable[[np.ndarray], np.ndarray]
) -> Callable[[], GatedBackend]:
    """Makes devices that wait for the test."""
    return lambda: GatedBackend(artifact, mean_color_logits)


@pytest.fixture
def gated(
    artifact: Artifact, mean_color_logits: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Callable[..., tuple[Any, GatedBackend]]]:
    """Starts servers whose device waits for the test; gives the server and the device."""
    from kdedge.serving.limits import RequestLimits
    from kdedge.serving.server import Server

    started = []

    def start(**limits: Any) -> tuple[Any, GatedBackend]:
        backend = GatedBackend(artifact, mean_color_logits)
        server = Server(
            lambda: artifact.path,
            lambda _: Classifier(artifact, artifact.files[0], backend),
            host="127.0.0.1",
            port=0,
            limits=RequestLimits(**limits),
        )
        backend.sizes.clear()  # of the warm-up
        while backend.begun.acquire(blocking=False):
            pass
        started.append((server, backend))
        return server, backend

    yield start
    for server, backend in started:
        backend.gate.set()
        server.close()
        assert backend.is_closed


@pytest.fixture
def make_checked(
    make_artifact: Callable[..., Artifact], mean_color_logits: Callable[[np.ndarray], np.ndarray]
) -> Callable[..., Artifact]:
    """Writes an artifact with a smoke set; with `wrong` logits in it, the artifact fails it."""
    from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set

    def make(folder: Path, *, wrong: bool = False, names: tuple[str, ...] = ()) -> Artifact:
        artifact = make_artifact(folder)
        pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
        for number, color in enumerate(COLORS.values()):
            pixels[number] = color
        logits = np.roll(mean_color_logits(pixels).astype(np.float32), int(wrong), axis=1)
        path = folder / SMOKE_SET
        write_smoke_set(path, SmokeSet(pixels, logits))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        artifact = dataclasses.replace(
            artifact, others={SMOKE_SET: digest}, class_names=names or artifact.class_names
        )
        artifact.save()
        return artifact

    return make
