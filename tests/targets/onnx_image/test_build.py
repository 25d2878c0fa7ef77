"""The graph's preprocessing gives Pillow's bytes, and its file the pixel file's answers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from kdedge.artifacts.build import build_files  # noqa: E402
from kdedge.artifacts.parity import SMOKE_SET, read_smoke_set, write_smoke_set  # noqa: E402
from kdedge.errors import DataError, RecipeError, SetupError  # noqa: E402
from kdedge.inference.classify import Classifier  # noqa: E402
from kdedge.runtime.artifact import Artifact, load_artifact  # noqa: E402
from kdedge.runtime.preprocess import Preprocess, resize_and_crop  # noqa: E402
from kdedge.targets.onnx_image import run  # noqa: E402
from kdedge.targets.onnx_image.build import find_order, preprocess_graph  # noqa: E402
from kdedge.targets.onnx_image.graph import Order  # noqa: E402
from kdedge.targets.registry import find_target  # noqa: E402

SIZE = 32
# Height and width: the same, smaller, larger, odd rests of the crop, long, tall, a single pixel
SHAPES = [
    *((32, 32), (64, 64), (7, 7), (1, 1), (33, 47), (47, 33), (50, 91), (91, 50), (31, 33)),
    *((1, 100), (100, 1), (200, 40), (40, 200), (200, 70), (333, 70), (500, 151), (257, 640)),
]


Noise = Callable[[int, int], Any]


def preprocessing(**values: Any) -> Preprocess:
    return Preprocess(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), **values)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_the_graph_gives_pillows_bytes_for_images_of_any_shape(
    interpolation: str, resize_mode: str, noise: Noise
) -> None:
    preprocess = preprocessing(interpolation=interpolation, resize_mode=resize_mode)
    graph = preprocess_graph(preprocess, find_order(preprocess))
    onnx.checker.check_model(graph, full_check=True)
    images = [noise(*shape) for shape in SHAPES]
    for image, got in zip(
        images, run.run_preprocessing(graph.SerializeToString(), images), strict=True
    ):
        wanted = np.asarray(resize_and_crop(Image.fromarray(image), preprocess))
        np.testing.assert_array_equal(got.transpose(1, 2, 0), wanted, err_msg=str(image.shape))


def slowly_resized(image: Any, n_outputs: int) -> Any:
    """One axis of `Resample.c` of Pillow, weight by weight: [L, K] -> [n_outputs, K]."""
    scale = len(image) / n_outputs
    widened = max(scale, 1.0)
    rows = []
    for place in range(n_outputs):
        center = (place + 0.5) * scale
        first = max(0, int(center - 2 * widened + 0.5))
        last = min(len(image), int(center + 2 * widened + 0.5))
        weights = []
        for x in range(first, last):
            d = abs((x - center + 0.5) / widened)
            near, far = (1.5 * d - 2.5) * d * d + 1, -0.5 * (((d - 5) * d + 8) * d - 4)
            weights.append(near if d < 1 else far if d < 2 else 0.0)
        units = [round(weight / sum(weights) * 2**22) for weight in weights]
        total = sum(u * row.astype(int) for u, row in zip(units, image[first:last], strict=True))
        rows.append(np.clip((total + 2**21) >> 22, 0, 255))
    return np.stack(rows).astype(np.uint8)


@pytest.mark.parametrize("order", ["width first", "by size"])
def test_each_order_is_that_of_a_slow_resize_axis_by_axis(order: Order, noise: Noise) -> None:
    """Older Pillows resize the width first; newer ones a tall image's height."""
    preprocess = preprocessing(resize_mode="squash")
    graph = preprocess_graph(preprocess, order).SerializeToString()
    for height, width in ((40, 64), (200, 40)):
        image = noise(height, width)
        is_tall = order == "by size" and height - SIZE > 2 * (width - SIZE)
        if is_tall:
            rows = slowly_resized(image.reshape(height, -1), SIZE).reshape(SIZE, width, 3)
            columns = rows.transpose(1, 0, 2).reshape(width, -1)
            wanted = slowly_resized(columns, SIZE).reshape(SIZE, SIZE, 3).transpose(1, 0, 2)
        else:
            columns = image.transpose(1, 0, 2).reshape(width, -1)
            rows = slowly_resized(columns, SIZE).reshape(SIZE, height, 3).transpose(1, 0, 2)
            wanted = slowly_resized(rows.reshape(height, -1), SIZE).reshape(SIZE, SIZE, 3)
        (got,) = run.run_preprocessing(graph, [image])
        np.testing.assert_array_equal(got.transpose(1, 2, 0), wanted)


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (5, 0, 3)])
def test_an_image_without_pixels_does_not_end_the_process(shape: tuple[int, ...]) -> None:
    """A division by zero of whole numbers would."""
    graph = preprocess_graph(preprocessing(), "by size").SerializeToString()
    with contextlib.suppress(Exception):  # ONNX Runtime may say that it is empty
        run.run_preprocessing(graph, [np.zeros(shape, np.uint8)])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ],
)  # fmt: skip
def test_what_is_no_rgb_image_is_told(built: Artifact, image: Any) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \[height, width, 3\], RGB"):
        run.load(built.path / "model.image.onnx").run_image(image)


def test_a_strip_of_5000_pixels_becomes_its_center(noise: Noise) -> None:
    """Pillow would make 160,000 x 32 pixels of it, and keep 32 x 32."""
    preprocess = preprocessing()
    graph = preprocess_graph(preprocess, "by size").SerializeToString()
    for strip in (noise(1, 5000), noise(5000, 1)):
        (got,) = run.run_preprocessing(graph, [strip])
        wanted = resize_and_crop(Image.fromarray(strip), preprocess)
        np.testing.assert_array_equal(got.transpose(1, 2, 0), np.asarray(wanted))


def test_a_pillow_that_resizes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize

    def other(self: Image.Image, size: Any, *_: Any) -> Image.Image:
        return resize(self, size, Image.Resampling.HAMMING)

    monkeypatch.setattr(Image.Image, "resize", other)
    with pytest.raises(SetupError, match="resizes otherwise than the graph"):
        find_order(preprocessing())


@pytest.fixture
def built(artifact: Artifact) -> Artifact:
    return build_files(artifact, find_target("onnx-image"), ["fp32"], inputs=None)[0]


def rebuilt(built: Artifact, graph: Any, listed: Callable[..., Any], folder: Path) -> Artifact:
    """The artifact of another graph with the same smoke set, in a new folder."""
    folder.mkdir()
    onnx.save(graph, folder / "model.onnx")
    shutil.copy(built.path / SMOKE_SET, folder)
    pixels = "uint8" if graph.graph.input[0].type.tensor_type.elem_type == 2 else "float"
    files = (listed(folder / "model.onnx"),)
    other = dataclasses.replace(built, path=folder, pixels=pixels, files=files)
    return build_files(other, find_target("onnx-image"), ["fp32"], inputs=None)[0]


def test_the_file_is_compared_listed_and_described(built: Artifact) -> None:
    found = load_artifact(built.path)
    file = found.file("model.image.onnx")
    assert (file.target, file.precision, file.gate) == ("onnx-image", "fp32", "passed")
    assert file.made_from == found.file("model.onnx").sha256
    assert file.parity.agreement_percent == 100
    assert file.built_with["input"] == {
        "name": "image", "dtype": "uint8", "layout": "HWC", "channels": "RGB", "values": [0, 255],
    }  # fmt: skip
    session = onnxruntime.InferenceSession(built.path / file.name)
    (takes,) = session.get_inputs()
    assert (takes.name, takes.type, takes.shape) == (
        "image", "tensor(uint8)", ["height", "width", 3],
    )  # fmt: skip
    assert [(out.name, out.shape) for out in session.get_outputs()] == [
        ("logits", [1, 5]), ("pixels", [1, 3, SIZE, SIZE]),
    ]  # fmt: skip


def test_it_answers_as_the_pixel_file_does_after_pillow(built: Artifact, noise: Noise) -> None:
    plain = Classifier.load(built.path, backend="onnxruntime", n_threads=1)
    whole = Classifier.load(built.path, backend="onnxruntime-image", n_threads=1)
    assert (plain.file.name, whole.file.name) == ("model.onnx", "model.image.onnx")
    images = [(str(shape), Image.fromarray(noise(*shape))) for shape in SHAPES]
    pairs = zip(plain.classify_many(images, top=5), whole.classify_many(images, top=5), strict=True)
    for wanted, got in pairs:
        assert got.key == wanted.key
        names = [one.class_name for one in got.top]
        assert names == [one.class_name for one in wanted.top]
        np.testing.assert_allclose(
            [one.score_percent for one in got.top],
            [one.score_percent for one in wanted.top],
            atol=1e-3,
        )
    squares = np.stack([noise(SIZE, SIZE), noise(SIZE, SIZE)[::-1]])
    np.testing.assert_allclose(whole.logits(squares), plain.logits(squares), atol=1e-4)


def test_values_that_overshoot_are_black_and_white(built: Artifact) -> None:
    session = run.load(built.path / "model.image.onnx", n_threads=1)
    edges = np.zeros((2, 3, SIZE, SIZE), np.float32)
    edges[1] = 1
    np.testing.assert_array_equal(session.run(edges * 1.04 - 0.02), session.run(edges))


def test_it_is_not_used_unless_it_is_asked_for(built: Artifact) -> None:
    classifier = Classifier.load(built.path, n_threads=1)
    assert classifier.file.target != "onnx-image"


def test_openvino_reads_the_file(built: Artifact, noise: Noise) -> None:
    openvino = pytest.importorskip("openvino")
    path = built.path / "model.image.onnx"
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runtime, session = run.load(path, n_threads=1), onnxruntime.InferenceSession(path)
    for shape in SHAPES:
        image = noise(*shape)
        found = model({"image": image})
        (pixels,) = session.run(["pixels"], {"image": image})
        apart = found["pixels"].astype(int) - pixels
        assert np.abs(apart).max() <= 2
        assert (apart != 0).mean() < 0.02
        assert found["logits"][0].argmax() == runtime.run_image(image)[0].argmax()


def test_uint8_pixels_are_given_as_they_are(
    built: Artifact, noise: Noise, listed: Callable[..., Any], tmp_path: Path
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(built.path / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["scaled" if name == "images" else name for name in node.input]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    first = helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT)
    model.graph.node.extend([first, helper.make_node("Div", ["values", "all"], ["scaled"]), *nodes])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "all"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    other = rebuilt(built, model, listed, tmp_path / "bytes")
    assert other.file("model.image.onnx").built_with["pixels"] == "uint8"
    assert other.file("model.image.onnx").gate == "passed"
    image = noise(50, 91)
    wanted = run.load(built.path / "model.image.onnx").run_image(image)
    got = run.load(other.path / "model.image.onnx").run_image(image)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_fixed_batch_is_refused(artifact: Artifact) -> None:
    fixed = dataclasses.replace(artifact, batch=4)
    with pytest.raises(RecipeError, match=r"batches of 4 images.*\n.*export\.batch=dynamic"):
        build_files(fixed, find_target("onnx-image"), ["fp32"], inputs=None)
    assert not (artifact.path / "model.image.onnx").exists()


def test_a_damaged_file_is_told(built: Artifact) -> None:
    path = built.path / "model.image.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be loaded by onnxruntime"):
        run.load(path)


def test_whole_images_of_the_smoke_set_decide_the_gate(artifact: Artifact) -> None:
    """A resize that differs is found there."""
    path = artifact.path / SMOKE_SET
    smoke = read_smoke_set(path)
    assert len(smoke.images) == 3
    turned = (*smoke.images[1:], smoke.images[0])
    write_smoke_set(path, dataclasses.replace(smoke, images=turned))
    others = {SMOKE_SET: hashlib.sha256(path.read_bytes()).hexdigest()}
    changed = dataclasses.replace(artifact, others=others)
    parity = (
        build_files(changed, find_target("onnx-image"), ["fp32"], inputs=None)[0]
        .file("model.image.onnx")
        .parity
    )
    assert parity.max_softmax_distance is not None
    assert parity.max_softmax_distance > 0.01  # 0.00001 for the right images


def test_the_metadata_says_what_the_graph_takes(
    built: Artifact, listed: Callable[..., Any], tmp_path: Path
) -> None:
    graph = onnx.load(built.path / "model.onnx")
    graph.metadata_props.add(key="input", value=json.dumps({"layout": "NCHW"}))
    graph.metadata_props.add(key="preprocess", value=json.dumps({"crop": "center"}))
    other = rebuilt(built, graph, listed, tmp_path / "described")
    properties = onnx.load(other.path / "model.image.onnx").metadata_props
    found = {entry.key: json.loads(entry.value) for entry in properties}
    assert found["input"]["layout"] == "HWC"
    assert "the graph does the rest" in found["preprocess"]["steps"][0]
