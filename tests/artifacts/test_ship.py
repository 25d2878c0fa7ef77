"""The file to ship is the one that `predict` uses, and the artifact's own example takes it too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from kdedge.artifacts.ship import file_to_ship, predict_flags
from kdedge.inference.choose import choose_and_load, rank_files
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, TimedFile, keep_choice
from kdedge.runtime.preprocess import decode_image

ELSEWHERE = CpuMachine("Other CPU", ("amx_int8",), 2)


@pytest.fixture
def with_int8(artifact: Artifact, write_model: Any) -> Artifact:
    """An artifact with a float32 file and an INT8 file that is smaller; both passed their gates."""
    path = write_model(artifact.path / "model.int8-cpu.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = ModelFile(path.name, "onnx", "int8", "cpu", sha256=digest, n_bytes=9, gate="passed")
    plain = dataclasses.replace(artifact.files[0], gate="passed")
    artifact = artifact.with_files(plain, entry)
    artifact.save()
    return artifact


def chosen(artifact: Artifact, **changes: Any) -> Artifact:
    """The artifact after `export --cpu` chose its INT8 file."""
    name = "model.int8-cpu.onnx"
    values: dict[str, Any] = {
        "machine": CpuMachine.this(),
        "file": name,
        "sha256": artifact.file(name).sha256,
        "batch": 1,
        "candidates": (TimedFile(name, "int8", None, None, None, None, None),),
        "not_tried": {},
        "measured_at": "2026-01-02T03:04:05+00:00",
    }
    return keep_choice(artifact, CpuChoice(**{**values, **changes}))


def used_by_predict(artifact: Artifact) -> str:
    pytest.importorskip("onnxruntime")
    file, loaded = choose_and_load(artifact, precision=None, backend=None, n_threads=None)
    loaded.close()
    return file.name


def used_by_example(artifact: Artifact) -> str:
    pytest.importorskip("onnxruntime")
    from kdedge.artifacts.example import choose

    record = json.loads((artifact.path / "artifact.json").read_text(encoding="utf-8"))
    return choose(artifact.path, record)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("not measured", "model.onnx"),
        ("measured", "model.int8-cpu.onnx"),
        ("float32 missed its gate", "model.int8-cpu.onnx"),
        ("built again", "model.onnx"),
    ],
)
def test_predict_the_file_to_ship_and_the_example_are_one_file(
    with_int8: Artifact, kind: str, name: str
) -> None:
    artifact = with_int8
    if kind == "measured":
        artifact = chosen(artifact)
    if kind == "built again":
        artifact = chosen(artifact, sha256="0" * 64)
    if kind == "float32 missed its gate":
        artifact = artifact.with_files(dataclasses.replace(artifact.files[0], gate="missed"))
        artifact.save()
    shipped = file_to_ship(artifact, None)
    assert (shipped.file.name, shipped.processor) == (name, "CPU")
    assert used_by_predict(artifact) == name
    assert used_by_example(artifact) == name


def test_a_file_that_was_measured_elsewhere_ships_and_predict_says_why_it_takes_another(
    with_int8: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = chosen(with_int8, machine=ELSEWHERE)
    shipped = file_to_ship(artifact, None)
    assert (shipped.file.name, shipped.machine) == ("model.int8-cpu.onnx", str(ELSEWHERE))
    assert predict_flags(artifact, shipped.file) == ["--precision", "int8"]
    assert used_by_example(artifact) == shipped.file.name
    assert used_by_predict(artifact) == "model.onnx"
    assert "measured on another machine (Other CPU" in caplog.text


def test_flags_select_a_file_that_is_not_the_first(with_int8: Artifact) -> None:
    plain, int8 = with_int8.files
    image = dataclasses.replace(int8, name="model.image.int8-cpu.onnx", target="onnx-image")
    artifact = with_int8.with_files(image)
    assert predict_flags(artifact, plain) == []
    assert predict_flags(artifact, int8) == ["--precision", "int8"]
    wanted = ["--precision", "int8", "--backend", "onnxruntime-image"]
    assert predict_flags(artifact, image) == wanted


@pytest.mark.usefixtures("cudart")
def test_with_a_gpu_its_engine_ships(with_int8: Artifact) -> None:
    engine = ModelFile("model.fp16.engine", "tensorrt", "fp16", "gpu", "0" * 64, 1, gate="passed")
    shipped = file_to_ship(chosen(with_int8).with_files(engine), None)
    assert (shipped.file, shipped.processor) == (engine, "GPU")


def test_nothing_ships_if_every_file_missed_its_gate(with_int8: Artifact) -> None:
    missed = tuple(dataclasses.replace(file, gate="missed") for file in with_int8.files)
    artifact = dataclasses.replace(chosen(with_int8), files=missed)
    assert rank_files(artifact) == []
    assert file_to_ship(artifact, None) is None


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_the_example_turns_an_uncompressed_tiff_as_predict_does(tmp_path: Path, mode: str) -> None:
    pytest.importorskip("onnxruntime")
    from kdedge.artifacts.example import read_rgb

    path, exif = tmp_path / "a.tif", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    gradient = np.add.outer(np.arange(30) * 3, np.arange(50)).astype(np.uint8)
    Image.fromarray(gradient).convert(mode).save(path, exif=exif)
    wanted = np.asarray(decode_image(path.read_bytes()))
    np.testing.assert_array_equal(np.asarray(read_rgb(str(path))), wanted)
