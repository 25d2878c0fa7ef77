"""What a server does while requests come at once, while it ends, and while its artifact changes."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.artifacts.parity import warn_of_failed_gates
from kdedge.errors import DataError, InUseError, RecipeError
from kdedge.inference.classify import Classifier
from kdedge.runs.find import find_artifact
from kdedge.runtime.artifact import Artifact, OpenClasses, matrix_bytes, matrix_name
from kdedge.runtime.open_classes import with_classes
from kdedge.serving.limits import RequestLimits
from kdedge.serving.model import Batcher, ServedModel
from kdedge.serving.server import Server
from kdedge.targets.registry import load_file

MakeArtifact = Callable[..., Artifact]

COLORS = ("red", "green", "blue")
ColorFile = Callable[[str], bytes]


def until(is_so: Callable[[], Any]) -> None:
    """Waits for something that takes no time, at most 20 seconds."""
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def gauge(ask: Any, server: Any, name: str) -> int:
    text = ask(server.url, "/metrics").body.decode()
    (line,) = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return int(float(line.split()[1]))


def waiting(ask: Any, server: Any) -> int:
    return gauge(ask, server, "kdedge_requests_waiting")


INFER = "/v2/models/colors/infer"


def tensors(images: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request with images [N, 3, S, S], whose answer is JSON."""
    given = {"name": "images", "shape": list(images.shape), "datatype": "FP32"}
    sizes = {"parameters": {"binary_data_size": images.nbytes}}
    head = json.dumps({"inputs": [given | sizes]}).encode()
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def send(ask: Any, pool: Any, color_file: ColorFile) -> Callable[..., Future[Any]]:
    """Sends an image of a color from another thread; gives the future answer."""

    def start(server: Any, color: str = "red") -> Future[Any]:
        return pool.submit(ask, server.url, "/predict", color_file(color))

    return start


def test_requests_that_wait_make_the_next_batches_and_each_gets_its_own_answer(
    gated: Any, send: Any, ask: Any
) -> None:
    server, device = gated()  # its artifact takes batches of 1 to 4
    device.gate.clear()
    first = send(server)
    device.begun.acquire()  # alone, and without waiting for others
    wanted = [COLORS[number % 3] for number in range(6)]
    others = [send(server, color) for color in wanted]
    until(lambda: waiting(ask, server) == 7)
    time.sleep(0.1)  # for the last one to be decoded
    device.gate.set()
    assert [one.result().json["class"] for one in others] == wanted
    assert first.result().json["class"] == "red"
    assert device.sizes == [1, 4, 2]


def test_a_request_behind_one_of_two_images_in_the_same_batch_gets_its_own_answer(
    gated: Any, send: Any, ask: Any, pool: Any
) -> None:
    server, device = gated()
    device.gate.clear()
    first = send(server)
    device.begun.acquire()
    red_and_green = np.zeros((2, 3, 16, 16), np.float32)
    red_and_green[0, 0] = red_and_green[1, 1] = 1
    two = pool.submit(ask, server.url, INFER, *tensors(red_and_green))
    until(lambda: waiting(ask, server) == 2)
    time.sleep(0.1)  # for it to be parsed
    behind = send(server, "blue")
    until(lambda: waiting(ask, server) == 3)
    time.sleep(0.1)  # for it to be decoded
    device.gate.set()
    (output,) = two.result().json["outputs"]
    assert np.reshape(output["data"], (2, 4)).argmax(axis=1).tolist() == [0, 1]
    assert behind.result().json["class"] == "blue"
    assert first.result().json["class"] == "red"
    assert device.sizes == [1, 3]


def test_a_request_above_the_limit_is_told_to_come_again(gated: Any, send: Any, ask: Any) -> None:
    server, device = gated(max_requests=2)
    device.gate.clear()
    taken = [send(server), send(server)]
    until(lambda: waiting(ask, server) == 2)
    refused = send(server).result()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.json == {"error": "2 requests wait already; try again later"}
    device.gate.set()
    assert [one.result().status for one in taken] == [200, 200]
    assert send(server).result().status == 200


def test_bodies_that_are_in_are_limited_together(gated: Any, ask: Any, pool: Any) -> None:
    server, _ = gated(max_megabytes=1)
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    slow = [socket.create_connection((host, int(port))) for _ in range(8)]
    try:
        for one in slow:
            one.sendall(head + bytes(999_000))
        # One body more while these come in would have some of them refused
        until(lambda: gauge(ask, server, "kdedge_body_bytes") == 8 * 999_000)
        assert ask(server.url, "/predict", bytes(900_000)).status == 503
    finally:
        for one in slow:
            one.close()
    until(lambda: ask(server.url, "/predict", bytes(900_000)).status == 400)


def test_an_answer_that_takes_too_long_is_given_up_and_what_waits_is_not_computed(
    gated: Any, send: Any
) -> None:
    server, device = gated(timeout=0.3)
    device.gate.clear()
    first = send(server)
    device.begun.acquire()
    for one in (first, send(server)):
        assert one.result().status == 503
        assert one.result().json["error"].startswith("no answer within 0.3 seconds")
    device.gate.set()
    assert send(server).result().status == 200
    assert device.sizes == [1, 1]


def test_a_request_that_waits_for_the_parser_is_given_up_in_time(
    gated: Any, ask: Any, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    numpy_reads = np.frombuffer

    def slow(*arguments: Any, **options: Any) -> Any:
        assert gate.wait(20)
        return numpy_reads(*arguments, **options)

    server, _ = gated(timeout=0.3)
    body, headers = tensors(np.zeros((1, 3, 16, 16), np.float32))
    monkeypatch.setattr(np, "frombuffer", slow)
    answers = [pool.submit(ask, server.url, INFER, body, headers) for _ in range(3)]
    try:
        for one in answers:
            found = one.result(timeout=10)
            assert found.status == 503
            assert found.json["error"].startswith("no answer within 0.3 seconds")
        assert waiting(ask, server) == 0
    finally:
        gate.set()


def test_images_of_a_request_that_was_given_up_are_not_decoded(
    gated: Any, ask: Any, color_file: ColorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    opened: list[Any] = []
    pillow_opens = Image.open

    def slow(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(file)
        assert gate.wait(20)
        return pillow_opens(file, *arguments, **options)

    server, _ = gated(timeout=0.3)
    monkeypatch.setattr(Image, "open", slow)
    picture = color_file("red")
    file = len(picture).to_bytes(4, "little") + picture
    given = {"name": "image_bytes", "shape": [2], "datatype": "BYTES"}
    sizes = {"parameters": {"binary_data_size": 2 * len(file)}}
    body = json.dumps({"inputs": [given | sizes]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    assert ask(server.url, "/v2/models/colors/infer", body + 2 * file, headers).status == 503
    gate.set()
    server.close()
    assert len(opened) == 1


def test_a_model_that_fails_is_said_to_have_failed_and_the_server_goes_on(
    gated: Any, send: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server, device = gated()
    device.error = RuntimeError("the device is gone")
    found = send(server).result()
    assert (found.status, found.json) == (500, {"error": "the server failed; its log says why"})
    assert "the device is gone" in caplog.text
    device.error = None
    assert send(server).result().status == 200


def test_logits_that_are_not_finite_are_no_answer(gated: Any, send: Any) -> None:
    server, device = gated()
    device.gives_nan = True
    found = send(server).result()
    assert (found.status, found.json) == (500, {"error": "the model gives NaN or infinity"})


def test_the_end_answers_what_is_in_and_refuses_what_comes(gated: Any, send: Any, ask: Any) -> None:
    server, device = gated()
    device.gate.clear()
    taken = send(server)
    device.begun.acquire()
    ends = threading.Thread(target=server.close)
    ends.start()
    until(lambda: _is_refused(server))
    assert not taken.done()
    device.gate.set()
    ends.join(20)
    assert not ends.is_alive()
    assert taken.result().json["class"] == "red"


def test_a_model_that_hangs_does_not_keep_the_server_from_its_end(
    gated: Any, send: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server, device = gated(timeout=0.5)
    device.gate.clear()
    taken = send(server)
    device.begun.acquire()
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 0.5 + 0.5 + 10  # the bounds of an answer
    assert taken.result().status == 503
    assert caplog.text.count("it hangs.") == 1
    assert not device.is_closed  # under a batch that it runs
    device.gate.set()
    until(lambda: device.is_closed)


def _is_refused(server: Any) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_open_connection_is_told_to_close_before_the_end(
    gated: Any, color_file: ColorFile
) -> None:
    server, _ = gated()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    ends = threading.Thread(target=server.close)
    try:
        while True:  # one request after the other, over one connection
            connection.request("POST", "/predict", color_file("red"))
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            if answer.getheader("Connection") == "close":
                break
            if not ends.is_alive():
                ends.start()
    finally:
        connection.close()
        ends.join(20)


def test_a_port_that_is_taken_is_told(artifact: Artifact) -> None:
    with kdedge.serve(artifact, port=0) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(InUseError, match=f"Port {port} of 127.0.0.1 is in use by another"):
            kdedge.serve(artifact, port=port)
    with kdedge.serve(artifact, port=port) as server:  # at once, and the same port
        assert server.url.endswith(f":{port}")


def test_two_servers_share_a_process(artifact: Artifact, ask: Any) -> None:
    with kdedge.serve(artifact, port=0) as one, kdedge.serve(artifact, port=0) as other:
        assert one.url != other.url
        assert ask(one.url, "/v2/health/ready").json == {"ready": True}
        assert ask(other.url, "/v2/models/colors/ready").json == {"name": "colors", "ready": True}


def test_a_process_that_goes_elsewhere_serves_the_same_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        shutil.copytree(artifact.path, tmp_path / folder / "art")
    monkeypatch.chdir(tmp_path / "one")
    with kdedge.serve("art", port=0) as server:
        monkeypatch.chdir(tmp_path / "two")
        time.sleep(1.5)  # it looks each second
        assert server.model.artifact.path == tmp_path / "one" / "art"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "256.1.1.1"}, "of '256.1.1.1' cannot be used"),
        ({"host": ""}, "of '' cannot be used: "),
        ({"host": "\udcff"}, "cannot be used: "),
        ({"host": "192.0.2.1"}, "cannot be used: cannot assign requested address"),
        ({"threads": 0}, "1 or more"),
        ({"precision": "int8"}, "has no int8 file"),
        ({"max_requests": 0}, "max_requests is 0"),
        ({"max_megapixels": 179}, "max_megapixels is 179; Pillow decodes 178 at most"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_options_that_cannot_be_used(
    artifact: Artifact, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        kdedge.serve(artifact, **{"port": 0, **options})


def test_a_damaged_artifact_is_not_served_and_leaves_the_port(artifact: Artifact) -> None:
    (artifact.path / "model.onnx").write_bytes(b"damaged")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="has changed since the export"):
        kdedge.serve(artifact, port=port)
    socket.create_server(("127.0.0.1", port)).close()


def test_the_largest_batch_may_be_smaller_than_the_artifact_s(artifact: Artifact) -> None:
    with kdedge.serve(artifact, port=0, batch=2) as server:
        assert server.model.max_batch == 2
    with kdedge.serve(artifact, port=0, batch=999) as server:
        assert server.model.max_batch == 4


def test_a_start_that_fails_closes_the_model(
    artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    device = gated_backend()
    device.error = DataError("it does not run")
    model = Classifier(artifact, artifact.files[0], device)
    find = partial(Path, artifact.path)
    with pytest.raises(DataError, match="does not run"):
        Server(find, lambda _: model, host="127.0.0.1", port=0, limits=RequestLimits())
    assert device.is_closed


NAMES = ("rouge", "green", "blue", "dark thing")


class Load:
    """Clients that ask without a pause, and what they got."""

    def __init__(self, ask: Any, url: str, data: bytes) -> None:
        self._ends = threading.Event()
        self.answers: list[Any] = []
        self._ask, self._url, self._data = ask, url, data
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]

    def _run(self) -> None:
        while not self._ends.is_set():
            self.answers.append(self._ask(self._url, "/predict", self._data))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()


def replace(link: Path, target: Path) -> None:
    """Points a link elsewhere at once."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def test_a_new_artifact_is_served_without_a_lost_request_and_a_damaged_one_is_not(
    make_checked: MakeArtifact,
    tmp_path: Path,
    ask: Any,
    color_file: ColorFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "kdedge")
    make_checked(tmp_path / "1")
    make_checked(tmp_path / "2", names=NAMES)
    (make_checked(tmp_path / "damaged").path / "model.onnx").write_bytes(b"damaged")
    make_checked(tmp_path / "wrong", wrong=True)
    link = tmp_path / "served"
    link.symlink_to(tmp_path / "1")

    def search() -> Path:
        time.sleep(0.003)  # the folder that was found is kept for some looks
        return find_artifact(link, Path())

    with quick(link, search) as server, Load(ask, server.url, color_file("red")) as load:
        for name, message in (
            ("damaged", "model.onnx has changed since the export"),
            ("wrong", "model.onnx missed its gates against the float32 model"),
            ("nowhere", "does not exist"),
        ):
            replace(link, tmp_path / name)
            until(lambda message=message: message in caplog.text)
        assert {one.json["class"] for one in load.answers} == {"red"}
        replace(link, tmp_path / "2")
        until(lambda: load.answers[-1].json["class"] == "rouge")
        text = ask(server.url, "/metrics").body.decode()
    assert {one.status for one in load.answers} == {200}
    assert 'kdedge_new_artifacts_total{outcome="refused"} 3.0' in text
    assert 'kdedge_new_artifacts_total{outcome="taken"} 1.0' in text
    assert "Serving the new artifact" in caplog.text


@pytest.mark.parametrize("wrong", [True, False])
def test_a_model_that_misses_its_gates_on_this_machine_is_warned_of(
    make_checked: MakeArtifact,
    tmp_path: Path,
    paint: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    wrong: bool,
) -> None:
    artifact = make_checked(tmp_path / "1", wrong=wrong)
    quick(artifact.path).close()
    kdedge.predict(artifact, paint(tmp_path / "red.png", (250, 0, 0)))
    told = "model.onnx missed its gates against the float32 model"
    assert [told in message for message in caplog.messages].count(True) == 2 * wrong


class Slow:
    """A backend whose calls take longer."""

    def __init__(self, backend: Any, seconds: float) -> None:
        self._backend, self._seconds = backend, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, images: Any) -> Any:
        time.sleep(self._seconds)
        return self._backend.run(images)


@pytest.mark.parametrize(("seconds", "is_compared"), [(0.4, False), (0.0, True)])
def test_what_takes_too_long_is_not_compared(
    make_checked: MakeArtifact,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    is_compared: bool,
) -> None:
    artifact = make_checked(tmp_path / "1", wrong=True)  # 6 images, 2 of which are one call
    (file,) = artifact.files
    slow: Any = Slow(load_file(artifact, file), seconds)
    warn_of_failed_gates(artifact, file, slow)
    assert ("missed its gates" in caplog.text) == is_compared


def quick(source: Path, search: Callable[[], Path] | None = None) -> Any:
    """A server that looks for a new artifact many times a second."""
    address: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "limits": RequestLimits()}
    find = search or partial(find_artifact, source, Path())
    return Server(find, Classifier.load, **address, look_every_s=0.05)


def test_a_slow_search_for_the_folder_is_rare(make_checked: MakeArtifact, tmp_path: Path) -> None:
    searches, path = [], make_checked(tmp_path / "1").path

    def search() -> Path:
        searches.append(time.sleep(0.05))
        return path

    with quick(path, search):
        time.sleep(0.4)
    assert len(searches) == 1


def test_a_run_s_newer_artifact_is_served(
    make_checked: MakeArtifact, tmp_path: Path, ask: Any, color_file: ColorFile
) -> None:
    make_checked(tmp_path / "run/artifacts/01")
    with quick(tmp_path / "run") as server:
        make_checked(tmp_path / "run/artifacts/02", names=NAMES)
        until(lambda: ask(server.url, "/predict", color_file("red")).json["class"] == "rouge")


def test_an_artifact_that_is_copied_slowly_is_served_when_it_is_whole(
    make_checked: MakeArtifact, tmp_path: Path, ask: Any, color_file: ColorFile
) -> None:
    make_checked(tmp_path / "art")
    new = make_checked(tmp_path / "new", names=NAMES).path
    with quick(tmp_path / "art") as server:
        for file in sorted(new.iterdir()):  # artifact.json comes first
            time.sleep(0.15)  # so that each state is found whole
            shutil.copy(file, tmp_path / "art.part")
            (tmp_path / "art.part").replace(tmp_path / "art" / file.name)
        until(lambda: ask(server.url, "/predict", color_file("red")).json["class"] == "rouge")


def test_the_old_model_is_closed_once_its_last_request_is_answered(
    gated: Any, send: Any, artifact: Artifact, mean_color_logits: Any
) -> None:
    server, device = gated()
    device.gate.clear()
    taken = send(server)
    device.begun.acquire()
    other = type(device)(artifact, mean_color_logits)
    take_over(server, Classifier(artifact, artifact.files[0], other))
    assert not device.is_closed
    device.gate.set()
    assert taken.result().json["class"] == "red"
    until(lambda: device.is_closed)
    assert send(server, "blue").result().json["class"] == "blue"
    assert other.sizes == [1]


def test_a_prediction_has_the_class_names_of_the_model_that_made_it(
    gated: Any, send: Any, artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    server, device = gated()
    device.gate.clear()
    taken = send(server)
    device.begun.acquire()
    renamed = dataclasses.replace(artifact, class_names=NAMES)
    take_over(server, Classifier(renamed, artifact.files[0], gated_backend()))
    device.gate.set()
    assert taken.result().json["class"] == "red"
    assert send(server).result().json["class"] == "rouge"


def test_the_metrics_count_the_classes_of_the_model_that_made_the_logits(
    gated: Any, ask: Any, pool: Any, artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    server, device = gated()
    device.gate.clear()
    red = np.zeros((1, 3, 16, 16), np.float32)
    red[:, 0] = 1
    taken = pool.submit(ask, server.url, INFER, *tensors(red))
    device.begun.acquire()
    renamed = dataclasses.replace(artifact, class_names=NAMES)
    take_over(server, Classifier(renamed, artifact.files[0], gated_backend()))
    device.gate.set()
    assert taken.result().status == 200
    text = ask(server.url, "/metrics").body.decode()
    assert 'kdedge_predictions_total{class="red"} 1.0' in text


def test_logits_are_by_the_class_matrix_of_the_model_that_made_the_features(
    gated: Any, ask: Any, pool: Any, artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    server, device = gated()
    red = np.zeros((1, 3, 16, 16), np.float32)
    red[:, 0] = 1
    before = ask(server.url, INFER, *tensors(red)).json["outputs"]
    device.begun.acquire()
    device.gate.clear()
    taken = pool.submit(ask, server.url, INFER, *tensors(red))
    device.begun.acquire()
    opened = open_artifact(artifact, matrix=np.roll(np.eye(4, dtype=np.float32), 1, axis=0))
    backend = with_classes(opened, gated_backend())
    take_over(server, Classifier(opened, artifact.files[0], backend))
    device.gate.set()
    assert taken.result().json["outputs"] == before
    after = ask(server.url, INFER, *tensors(red)).json["outputs"]
    assert after[0]["data"] == np.roll(before[0]["data"], 1).tolist()


def take_over(server: Any, classifier: Classifier) -> None:
    """Serves another artifact from now on."""
    server._app.model = ServedModel(classifier, batch=None)


def open_artifact(artifact: Artifact, matrix: np.ndarray) -> Artifact:
    """The artifact with open classes of this matrix [C, D]."""
    name = matrix_name(1)
    (artifact.path / name).write_bytes(matrix_bytes(matrix))
    digest = hashlib.sha256(matrix_bytes(matrix)).hexdigest()
    return dataclasses.replace(
        artifact,
        open_classes=OpenClasses(name, dim=matrix.shape[1], scale=1.0),
        others={name: digest},
    )


def test_a_batch_has_images_of_one_model(
    artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    old, new = gated_backend(), gated_backend()
    models = [
        ServedModel(Classifier(artifact, artifact.files[0], one), batch=None) for one in (old, new)
    ]
    sizes: list[int] = []
    batcher = Batcher(sizes.append)
    old.gate.clear()
    image = np.zeros((1, 3, 16, 16), np.float32)
    futures = [batcher.submit(models[0], image)]
    old.begun.acquire()
    # As while a new artifact takes over
    futures += [batcher.submit(models[number], image) for number in (0, 1, 0)]
    old.gate.set()
    assert [len(future.result(10)) for future in futures] == [1] * 4
    assert (old.sizes, new.sizes, sizes) == ([1] * 3, [1], [1] * 4)
    assert batcher.close(patience_s=10)
