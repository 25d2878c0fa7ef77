"""The gate says what was missed and what to do; the smoke set compares a file where it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from kdedge.artifacts.parity import (
    SMOKE_SET,
    SmokeSet,
    failed_gates,
    gate_error,
    parity_on_smoke_set,
    predict_pixels,
    read_smoke_set,
    warn_of_failed_gates,
    write_smoke_set,
)
from kdedge.config.export_spec import GatesSpec
from kdedge.errors import DataError
from kdedge.records.evaluation import ParityResult, WorstImage
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess

SIZE, NAMES = 4, ("cat", "dog", "fox")
GATES = GatesSpec().to_gates()
RESULT = ParityResult(
    n_images=2000,
    n_labeled=1000,
    n_nonfinite=0,
    agreement_percent=99.95,
    mean_softmax_distance=0.001,
    max_softmax_distance=0.1,
    accuracy_percent=80.0,
    reference_accuracy_percent=80.5,
    accuracy_drop=0.5,
    worst=(
        WorstImage("a.jpg", "cat", "dog", 0.6),
        WorstImage("b.jpg", "fox", None, 1.0),
        WorstImage("c.jpg", "fox", "fox", 0.2),
        WorstImage("d.jpg", "fox", "fox", 0.1),
    ),
    images="2000 of 4000 images of data.test",
    runtime="onnxruntime 1.24.4 CPU",
)


class Means:
    """An engine that answers with each color's mean, times a factor; takes given batches only."""

    name, pixels = "means", "float"

    def __init__(self, batches: tuple[int, int | None] = (1, None), *, n_classes: int = 3) -> None:
        self.batches = batches
        self.sizes: list[int] = []
        self._n_classes = n_classes

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        low, high = self.batches
        assert low <= len(images) <= (high or len(images))
        self.sizes.append(len(images))
        return images.mean(axis=(2, 3), dtype=np.float32)[:, : self._n_classes]

    def describe(self) -> str:
        return "means 1.0"

    def close(self) -> None:
        pass


def make_pixels(n_images: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(n_images)
    return rng.integers(0, 256, (n_images, SIZE, SIZE, 3), dtype=np.uint8)


def answers(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return (pixels / 255).mean(axis=(1, 2)).astype(np.float32)


def make_artifact(folder: Path, **changes: Any) -> Artifact:
    values: dict[str, Any] = {
        "path": folder,
        "name": "line3",
        "class_names": NAMES,
        "preprocess": Preprocess(
            size_px=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
        ),
        "pixels": "float",
        "head": "scores",
        "max_batch": 5,
        "batch": "dynamic",
    }
    return Artifact(**(values | changes))


def with_smoke_set(artifact: Artifact, pixels: Any, logits: Any) -> Artifact:
    path = artifact.path / SMOKE_SET
    write_smoke_set(path, SmokeSet(pixels, logits))
    others = {SMOKE_SET: hashlib.sha256(path.read_bytes()).hexdigest()}
    return dataclasses.replace(artifact, others=others)


def test_uint8_graphs_get_the_pixels_as_they_are(tmp_path: Path) -> None:
    pixels, backend = make_pixels(2), Means()
    backend.pixels = "uint8"
    logits = predict_pixels(backend, pixels, make_artifact(tmp_path, pixels="uint8"))
    np.testing.assert_allclose(logits, pixels.mean(axis=(1, 2)), rtol=1e-6)  # float32 means


@pytest.mark.parametrize(
    ("key", "value", "precision", "expected"),
    [
        (
            "agreement_percent",
            97.2,
            "int8",
            "agreement 97.20 %, but at least 98.00 % is required: 56 of 2000 images differ, 40 may",
        ),
        ("agreement_percent", 99.4, "fp16", "99.40 %, but at least 99.50 % is required"),
        ("accuracy_drop", 1.234, "fp32", "accuracy 1.23 points lower, but at most 1.00 is allowed"),
        ("n_nonfinite", 1, "fp16", "NaN or infinity for 1 of 2000 images"),
    ],
)
def test_a_miss_is_a_sentence_with_got_asked_and_key(
    key: str, value: float, precision: Any, expected: str
) -> None:
    (miss,) = failed_gates(dataclasses.replace(RESULT, **{key: value}), precision, GATES)
    assert expected in miss
    keys = {
        "agreement_percent": f" (gates.agreement.{precision})",
        "accuracy_drop": " (gates.max_drop)",
    }
    assert miss.endswith(keys.get(key, expected))


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "fp16"),
        ({"agreement_percent": 99.5}, "fp16"),
        ({"agreement_percent": 98.0, "accuracy_drop": 1.0}, "int8"),
        ({"accuracy_drop": -5.0}, "int8"),
        ({"n_labeled": 96, "accuracy_drop": 100 / 96}, "int8"),  # one image
        ({"n_images": 96, "agreement_percent": 100 * 94 / 96}, "int8"),  # 1.92 images, rounded up
        (
            dict.fromkeys(("accuracy_drop", "accuracy_percent", "reference_accuracy_percent")),
            "fp16",
        ),
    ],
)
def test_what_meets_its_gates_exactly_misses_none(changes: dict[str, Any], precision: Any) -> None:
    assert failed_gates(dataclasses.replace(RESULT, **changes), precision, GATES) == ()


def test_the_error_names_file_misses_images_and_what_to_do() -> None:
    result = dataclasses.replace(RESULT, agreement_percent=97.0, n_nonfinite=1)
    file = ModelFile("model.int8.onnx", "onnx", "int8", "any", "0" * 64, 1)
    assert gate_error(file, RESULT, GATES) is None
    error = gate_error(file, result, GATES)
    assert error.exit_code == 6
    assert str(error).splitlines() == [
        "model.int8.onnx missed its gates against the float32 model: NaN or infinity for 1 of"
        " 2000 images; agreement 97.00 %, but at least 98.00 % is required: 60 of 2000 images"
        " differ, 40 may (gates.agreement.int8).",
        "  Compared on 2000 images (2000 of 4000 images of data.test) with onnxruntime 1.24.4 CPU.",
        "  Worst images: a.jpg (cat, here dog), b.jpg (fox, here NaN or infinity), c.jpg (fox, with"
        " other scores).",
        "  Calibrate on more images (export.calibration_images), leave int8 out of"
        " export.precisions, or lower the gates in the recipe.",
    ]


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [("fp16", "Leave fp16 out"), ("fp32", "Export again")],
)
def test_the_remedy_suits_the_precision(precision: Any, remedy: str) -> None:
    result = dataclasses.replace(RESULT, agreement_percent=1.0, worst=())
    text = str(gate_error(ModelFile("m", "onnx", precision, "any", "0" * 64, 1), result, GATES))
    assert f"  {remedy}" in text
    assert "Worst images" not in text


def test_a_smoke_set_survives_its_file(tmp_path: Path) -> None:
    pixels, path = make_pixels(7), tmp_path / SMOKE_SET
    # Views are not contiguous
    write_smoke_set(path, SmokeSet(pixels[:, ::-1], answers(pixels)[:, ::-1]))
    again = read_smoke_set(path)
    np.testing.assert_array_equal(again.pixels, pixels[:, ::-1])
    np.testing.assert_array_equal(again.logits, answers(pixels)[:, ::-1])
    assert (again.pixels.dtype, again.logits.dtype) == (np.uint8, np.float32)


def test_images_before_resize_and_crop_survive_the_file(tmp_path: Path) -> None:
    pixels, path = make_pixels(3), tmp_path / SMOKE_SET
    rng = np.random.default_rng(0)
    whole = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((5, 9, 3), (7, 2, 3))]
    files = []
    for image in whole:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    write_smoke_set(path, SmokeSet(pixels, answers(pixels), tuple(files)))
    again = read_smoke_set(path)
    assert again.images == tuple(files)
    for got, wanted in zip(again.uncropped(), [*whole, pixels[2]], strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_smoke_set_compares_a_file_where_it_runs(tmp_path: Path, caplog: Any) -> None:
    pixels = make_pixels(9)
    logits = answers(pixels)
    logits[4:6] = np.roll(logits[4:6], 1, axis=1)  # the smoke set's student answers two otherwise
    artifact = with_smoke_set(make_artifact(tmp_path, gates=GATES), pixels, logits)
    result = parity_on_smoke_set(artifact, Means())
    assert result.n_images == 9
    assert result.n_labeled == 0
    assert result.agreement_percent == 700 / 9
    assert {one.image[-3:] for one in result.worst[:2]} == {"[4]", "[5]"}
    assert result.images == f"9 images of {SMOKE_SET}"
    assert result.runtime == "means 1.0"
    assert result.mean_softmax_distance is not None
    for n_images in (500, 9):  # two of nine may be chance where 98 % of 500 agreed
        made = dataclasses.replace(RESULT, n_images=n_images, agreement_percent=98.0)
        file = ModelFile("m", "onnx", "int8", "any", "0" * 64, 1, parity=made)
        warn_of_failed_gates(artifact, file, Means())
        assert ("m missed its gates" in caplog.text) == (n_images == 9)


def test_the_smoke_set_sees_a_fault_of_single_images_alone_or_of_batches_alone(
    tmp_path: Path,
) -> None:
    pixels = make_pixels(10)
    artifact = with_smoke_set(make_artifact(tmp_path), pixels, answers(pixels))

    class Faulty(Means):
        def __init__(self, is_wrong: Callable[[int], bool]) -> None:
            super().__init__()
            self._is_wrong = is_wrong

        def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            return super().run(images) * (np.nan if self._is_wrong(len(images)) else 1)

    for is_wrong in (lambda n: n == 1, lambda n: n > 1):
        assert parity_on_smoke_set(artifact, Faulty(is_wrong)).n_nonfinite == 5
    fixed = Means((4, 4))
    parity_on_smoke_set(dataclasses.replace(artifact, batch=4), fixed)
    assert fixed.sizes == [4, 4, 4]


def test_an_argmax_artifact_is_compared_by_ranking_only(tmp_path: Path) -> None:
    pixels = make_pixels(3)
    artifact = with_smoke_set(make_artifact(tmp_path, head="argmax"), pixels, 7 * answers(pixels))
    result = parity_on_smoke_set(artifact, Means())
    assert result.agreement_percent == 100.0
    assert result.mean_softmax_distance is None


def test_a_changed_smoke_set_is_refused(tmp_path: Path) -> None:
    pixels = make_pixels(2)
    artifact = with_smoke_set(make_artifact(tmp_path), pixels, answers(pixels))
    with (artifact.path / SMOKE_SET).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="has changed since the export"):
        parity_on_smoke_set(artifact, Means())
