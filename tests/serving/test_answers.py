"""A server's answers: those of `predict`, and a reason for everything that is none."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.runtime.artifact import Artifact

MakeArtifact = Callable[..., Artifact]

ColorFile = Callable[[str], bytes]


@pytest.fixture(scope="module")
def folder(make_artifact: MakeArtifact, tmp_path_factory: Any) -> Path:
    return make_artifact(tmp_path_factory.mktemp("served") / "art").path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    limits = {"max_megabytes": 1, "max_megapixels": 1, "timeout": 5}  # machines are busy at times
    with kdedge.serve(folder, port=0, **limits) as server:
        yield server.url


def form(data: bytes, *, name: str = 'name="image"; filename="a.jpg"') -> tuple[bytes, dict]:
    head = f"--x\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
    return head + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("color", ["red", "green", "blue"])
def test_an_image_gets_the_classes_that_predict_gives(
    ask: Any, url: str, folder: Path, color_file: ColorFile, color: str
) -> None:
    data = color_file(color)
    with kdedge.load(folder) as model:
        expected = model(data, top=4)
    found = ask(url, "/predict", data)
    assert found.status == 200
    assert found.json == {
        "class": color,
        "score_percent": expected.score_percent,
        "top": [{"class": name, "score_percent": score} for name, score in expected.top],
    }


def test_a_form_with_the_image_gets_the_same_answer(
    ask: Any, url: str, color_file: ColorFile
) -> None:
    data = color_file("blue")
    sent, headers = form(data)
    assert ask(url, "/predict", sent, headers).body == ask(url, "/predict", data).body


def test_top_limits_the_classes(ask: Any, url: str, color_file: ColorFile) -> None:
    found = ask(url, "/predict?top=2", color_file("red")).json
    assert len(found["top"]) == 2


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5", "9" * 30, "%00"])
def test_a_top_that_is_no_number_is_refused(
    ask: Any, url: str, color_file: ColorFile, top: str
) -> None:
    found = ask(url, f"/predict?top={top}", color_file("red"))
    assert found.status == 400
    assert "must be 1 or more" in found.json["error"]


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG of this size, and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    idat = b"IDAT" + zlib.compress(bytes(1000))
    checked += struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    return b"\x89PNG\r\n\x1a\n" + checked


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "it begins with b'hello'"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "not a readable image"),
        (bomb(10_000, 10_000), "too large: 10000 x 10000 pixels, the limit is 1000000"),
        (bomb(2_000_000_000, 2), "too large"),
        (bomb(900, 5), "longer than 100 times"),
        (bomb(100, 100), "PNG data cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason_and_the_server_goes_on(
    ask: Any, url: str, color_file: ColorFile, data: bytes, reason: str
) -> None:
    found = ask(url, "/predict", data)
    assert found.status == 400
    assert reason in found.json["error"]
    assert ask(url, "/predict", color_file("green")).json["class"] == "green"


def test_a_truncated_image_is_refused(ask: Any, url: str, color_file: ColorFile) -> None:
    found = ask(url, "/predict", color_file("red")[:-40])
    assert found.status == 400
    assert "truncated" in found.json["error"].lower()


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Content-Type": "application/json"}, 415, "the body is application/json; send an image"),
        ({"Content-Type": "text/plain"}, 415, "send an image"),
        ({"Content-Type": "multipart/mixed; boundary=x"}, 415, "send an image"),
        ({"Content-Encoding": "gzip"}, 415, "send it without one"),
        ({"Content-Type": "multipart/form-data"}, 400, "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 400, "the form"),
        ({"Content-Length": "99999999999"}, 413, "larger than 1 MB"),
    ],
)
def test_content_that_the_path_does_not_take(
    ask: Any, url: str, headers: dict[str, str], status: int, reason: str
) -> None:
    found = ask(url, "/predict", b"{}", headers)
    assert found.status == status
    assert reason in found.json["error"]


def test_a_form_without_a_file_is_refused(ask: Any, url: str) -> None:
    found = ask(url, "/predict", *form(b"text", name='name="image"'))
    assert (found.status, found.json) == (
        400,
        {"error": "the form has no file; send the image as a file of it"},
    )


def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(ask: Any, url: str) -> None:
    found = ask(url, "/predict", (bytes(50_000) for _ in range(25)), encode_chunked=True)
    assert found.status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("DELETE", "/", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
    ],
)
def test_paths_and_methods_that_there_are_not(
    ask: Any, url: str, method: str, path: str, status: int
) -> None:
    found = ask(url, path, method=method)
    assert found.status == status
    assert found.json["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n1234",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET " + b"/x" * 100 + b"\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(
    raw: Any, ask: Any, url: str, data: bytes
) -> None:
    assert raw(url, data).startswith(b"HTTP/1.1 400 ")
    assert ask(url, "/v2/health/live").status == 200


def test_headers_without_end_are_refused(raw: Any, url: str) -> None:
    data = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(400))
    assert raw(url, data).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_trickles_is_given_up(raw: Any, url: str) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    found = raw(url, head + b"0123456789")
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"not complete after 5 seconds" in found


def test_the_page_takes_nothing_from_elsewhere(ask: Any, url: str) -> None:
    found = ask(url, "/")
    assert found.status == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["content-security-policy"].startswith("default-src 'none'; script-src")
    assert b"http" not in found.body.replace(b"HTTPS", b"")


def test_metrics_count_requests_batches_and_classes(
    ask: Any, make_artifact: MakeArtifact, tmp_path: Path, color_file: ColorFile
) -> None:
    red = np.broadcast_to(np.eye(3)[0][:, None, None], (2, 3, 16, 16))
    with kdedge.serve(make_artifact(tmp_path / "art"), port=0) as server:
        for color in ("red", "red", "blue"):
            ask(server.url, "/predict", color_file(color))
        ask(server.url, "/predict", b"none")
        ask(server.url, "/nothing")
        ask(server.url, "/v2/models/colors/infer", json.dumps(tensor_request(red)))
        text = ask(server.url, "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert lines['kdedge_requests_total{code="200",path="/predict"}'] == "3.0"
    assert lines['kdedge_requests_total{code="400",path="/predict"}'] == "1.0"
    assert lines['kdedge_requests_total{code="404",path="other"}'] == "1.0"
    assert lines['kdedge_predictions_total{class="red"}'] == "4.0"
    assert lines["kdedge_images_refused_total"] == "1.0"
    assert lines["kdedge_batch_images_count"] == "4.0"
    assert lines['kdedge_request_seconds_count{path="/predict"}'] == "4.0"
    assert lines["kdedge_requests_waiting"] == "0.0"
    assert float(lines["process_resident_memory_bytes"]) > 1e6


def test_a_head_without_scores_gives_none(
    ask: Any, make_artifact: MakeArtifact, tmp_path: Path, color_file: ColorFile
) -> None:
    with kdedge.serve(make_artifact(tmp_path / "art", head="argmax"), port=0) as server:
        found = ask(server.url, "/predict?top=1", color_file("red")).json
    best = {"class": "red", "score_percent": None}
    assert found == {**best, "top": [best]}


def tensor_request(pixels: np.ndarray, **changes: Any) -> dict[str, Any]:
    given = {"name": "images", "shape": list(pixels.shape), "datatype": "FP32"}
    return {"id": "seven", "inputs": [{**given, "data": pixels.ravel().tolist(), **changes}]}


def test_the_protocol_in_json(
    ask: Any, url: str, mean_color_logits: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    images = pixels.transpose(0, 3, 1, 2) / 255
    found = ask(url, "/v2/models/colors/infer", json.dumps(tensor_request(images))).json
    (output,) = found.pop("outputs")
    assert found == {"model_name": "colors", "model_version": "1", "id": "seven"}
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 4])
    expected = mean_color_logits(pixels)  # in float64; the model is in float32
    np.testing.assert_allclose(np.reshape(output["data"], (3, 4)), expected, atol=1e-5)


SMALL = np.zeros((1, 3, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"{", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b"[]", "should be an object"),
        ({"inputs": []}, "inputs: List should have at least 1 item"),
        ({"inputs": [1]}, "inputs.0: Input should be"),
        ({"inputs": [{"name": "images"}]}, "inputs.0.datatype: Field required"),
        ({**tensor_request(SMALL), "id": 7}, "id: Input should be a valid string"),
        (
            {**tensor_request(SMALL), "outputs": [{"name": "scores"}]},
            "outputs.0.name: Input should be 'logits'",
        ),
        ({**tensor_request(SMALL), "outputs": 3}, "outputs: Input should be a valid array"),
        ({**tensor_request(SMALL), "parameters": []}, "parameters: Input should be"),
        (
            {
                **tensor_request(SMALL),
                "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}],
            },
            "shared_memory_region: Extra inputs are not permitted",
        ),
        (tensor_request(SMALL, name="pixels"), "there are images and image_bytes"),
        (tensor_request(SMALL, datatype="UINT8"), "must be FP32 of the shape [N, 3, 16, 16]"),
        (tensor_request(SMALL, shape=[1, 3, 8, 32]), "must be FP32 of the shape"),
        (tensor_request(SMALL, shape=[0, 3, 16, 16]), "N at least 1"),
        (tensor_request(SMALL, shape=[2**30, 3, 16, 16]), "by its shape"),
        (tensor_request(SMALL, shape=[True, 3, 16, 16]), "shape.0: Input should be"),
        (tensor_request(SMALL, shape=["1", 3, 16, 16]), "shape.0: Input should be"),
        (tensor_request(SMALL, data=[1.0]), "must have 768 numbers"),
        (tensor_request(SMALL, data=["1"] * 768), "no array of numbers"),
        (tensor_request(SMALL, data=[[1], [1, 2]]), "must have 768 numbers"),
        (tensor_request(SMALL, data=[1e39] * 768), "NaN or infinity"),
        (tensor_request(SMALL, data=[1e30] * 768), "must have values from 0 to 1"),
        (tensor_request(SMALL, data=[200.0] * 768), "must have values from 0 to 1"),
        (tensor_request(SMALL, data=[-2.0] * 768), "must have values from 0 to 1"),
        (tensor_request(SMALL, data=[float("nan")] * 768), "NaN or infinity"),
        (tensor_request(SMALL, parameters={"binary_data_size": 3072}), "there are 0 bytes"),
        (tensor_request(SMALL, name="image_bytes", datatype="BYTES", shape=[1]), "binary data"),
        (
            tensor_request(
                SMALL,
                name="image_bytes",
                datatype="BYTES",
                shape=[0],
                parameters={"binary_data_size": 0},
            ),
            "must have 1 to ",
        ),
    ],
)
def test_malformed_requests_of_the_protocol(ask: Any, url: str, request_: Any, reason: str) -> None:
    body = request_ if isinstance(request_, bytes) else json.dumps(request_)
    found = ask(url, "/v2/models/colors/infer", body)
    assert found.status == 400
    assert reason in found.json["error"]


@pytest.mark.parametrize(
    ("length", "rest", "reason"),
    [
        ("x", b"", "the body has"),
        ("-1", b"", "the body has"),
        ("100000", b"", "the body has"),
        ("9" * 5000, b"", "the body has"),
        (None, b"1234", "no binary_data_size"),
    ],
)
def test_wrong_lengths_of_binary_data(
    ask: Any, url: str, length: str | None, rest: bytes, reason: str
) -> None:
    head = json.dumps(tensor_request(SMALL)).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(head))}
    found = ask(url, "/v2/models/colors/infer", head + rest, headers)
    assert found.status == 400
    assert reason in found.json["error"]


@pytest.mark.parametrize(
    "data", [b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xffabc", b"\x01\x00\x00\x00a" * 2, b"\x01"]
)
def test_files_with_wrong_lengths(ask: Any, url: str, data: bytes) -> None:
    given = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}
    given["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    found = ask(url, "/v2/models/colors/infer", head + data, headers)
    assert found.status == 400
    assert "does not hold 1 images with their lengths" in found.json["error"]


def test_a_uint8_tensor_has_whole_numbers_to_255(
    ask: Any, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    with kdedge.serve(make_artifact(tmp_path / "art", pixels="uint8"), port=0) as server:
        for value, status in ((255, 200), (256, 400), (0.5, 400), (-1, 400)):
            sent = tensor_request(SMALL, datatype="UINT8", data=[value] * 768)
            assert ask(server.url, "/v2/models/colors/infer", json.dumps(sent)).status == status


@pytest.mark.parametrize("kind", [{}, {"pixels": "uint8"}, {"batch": 3}])
def test_the_real_client_of_the_protocol(
    make_artifact: MakeArtifact,
    tmp_path: Path,
    mean_color_logits: Callable[[np.ndarray], np.ndarray],
    kind: dict[str, Any],
) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    pixels = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    datatype = "UINT8" if "pixels" in kind else "FP32"
    images = planes if datatype == "UINT8" else planes.astype(np.float32) / np.float32(255)
    with kdedge.serve(make_artifact(tmp_path / "art", **kind), port=0) as server:
        client = triton.InferenceServerClient(server.url.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("colors")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("colors") == {
            "name": "colors",
            "versions": ["1"],
            "platform": "onnxruntime",
            "inputs": [{"name": "images", "datatype": datatype, "shape": [-1, 3, 16, 16]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
        }
        for is_binary in (False, True):
            given = triton.InferInput("images", list(images.shape), datatype)
            given.set_data_from_numpy(images, binary_data=is_binary)
            wanted = triton.InferRequestedOutput("logits", binary_data=is_binary)
            for outputs in ([wanted], None):
                answer = client.infer("colors", [given], outputs=outputs, request_id="a")
                logits = answer.as_numpy("logits")
                np.testing.assert_allclose(logits, mean_color_logits(pixels), atol=1e-5)
                assert answer.get_response()["id"] == "a"
        with pytest.raises(triton.InferenceServerException, match="must be"):
            client.infer("colors", [triton.InferInput("images", [1, 3, 8, 8], datatype)])
        client.close()


def test_the_real_client_sends_image_files(url: str, folder: Path, color_file: ColorFile) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    files = [color_file(color) for color in ("blue", "red")]
    given = triton.InferInput("image_bytes", [2], "BYTES")
    given.set_data_from_numpy(np.array(files, dtype=object))
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    logits = client.infer("colors", [given]).as_numpy("logits")
    with kdedge.load(folder) as model:
        size = (model.artifact.preprocess.size_px,) * 2
        pixels = [
            np.asarray(Image.new("RGB", size, color)) for color in ((5, 5, 250), (250, 10, 10))
        ]
        expected = model.logits(np.stack(pixels))
    np.testing.assert_allclose(logits, expected, atol=0.2)  # JPEG's colors are not exact
    given.set_data_from_numpy(np.array([files[0], b"none"], dtype=object))
    with pytest.raises(triton.InferenceServerException, match="not a readable image"):
        client.infer("colors", [given])
    client.close()
