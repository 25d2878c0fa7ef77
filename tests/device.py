"""A device: a small artifact whose logits can be computed by hand, and GPUs that are not there.

The artifact's logits are linear in an image's mean color.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess

CLASS_NAMES = ("red", "green", "blue", "dark thing")
SIZE_PX = 16
# [3, C]: a class for each color, and one for none.
WEIGHT = np.array([[8, -1, -1, -4], [-1, 8, -1, -4], [-1, -1, 8, -4]], np.float32)
BIAS = np.array([0, 0, 0, 2], np.float32)


@pytest.fixture(scope="session")
def mean_color_logits() -> Callable[[np.ndarray], np.ndarray]:
    """What the model gives for [N, S, S, 3] uint8 pixels, [N, C] in float64."""

    def compute(pixels: np.ndarray) -> np.ndarray:
        means = pixels.astype(np.float64).mean(axis=(1, 2)) / 255
        return means @ WEIGHT.astype(np.float64) + BIAS

    return compute


def _write_model(
    path: Path,
    *,
    pixels: str = "float",
    batch: int | None = None,
    external: str | None = None,
    factor: float = 1.0,
) -> Path:
    """Writes the model; `external` names a file for its weights."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    as_float = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "full"], ["scaled"]),
    ]
    nodes = [
        *(as_float if pixels == "uint8" else []),
        helper.make_node(
            "GlobalAveragePool", ["scaled" if pixels == "uint8" else "images"], ["pooled"]
        ),
        helper.make_node("Flatten", ["pooled"], ["mean_color"]),
        helper.make_node("Gemm", ["mean_color", "weight", "bias"], ["logits"]),
    ]
    constants = {"weight": factor * WEIGHT, "bias": factor * BIAS, "full": np.float32(255)}
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    first = batch or "batch"
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("images", kind, [first, 3, SIZE_PX, SIZE_PX])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [first, len(CLASS_NAMES)])],
        [
            numpy_helper.from_array(np.asarray(value, np.float32), name)
            for name, value in constants.items()
            if name != "full" or pixels == "uint8"
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    if external is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    return path


def entry(path: Path, *, target: str = "onnx", **changes: Any) -> ModelFile:
    """The artifact's entry of a file as it is."""
    values: dict[str, Any] = {"precision": "fp32", "device": "any", **changes}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFile(path.name, target, sha256=digest, n_bytes=path.stat().st_size, **values)


def write_artifact(
    folder: Path,
    *,
    pixels: str = "float",
    head: str = "scores",
    batch: int | None = None,
    max_batch: int = 4,
    external: bool = False,
    factor: float = 1.0,
) -> Artifact:
    """Writes a folder with one ONNX file and gives the artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    data = "model.onnx.data" if external else None
    model = _write_model(
        folder / "model.onnx", pixels=pixels, batch=batch, external=data, factor=factor
    )
    others = {data: hashlib.sha256((folder / data).read_bytes()).hexdigest()} if data else {}
    artifact = Artifact(
        path=folder,
        name="colors",
        class_names=CLASS_NAMES,
        preprocess=Preprocess(SIZE_PX, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pixels=pixels,
        head=head,
        max_batch=max_batch,
        batch=batch or "dynamic",
        gates=Gates({"fp32": 99.9, "fp16": 99.5, "int8": 98.0}, max_drop=1.0),
        files=(entry(model, data=data, gate="passed"),),
        others=others,
        provenance={"seed": 1},
    )
    artifact.save()
    return artifact


@pytest.fixture(scope="session")
def make_artifact() -> Callable[..., Artifact]:
    """Writes an artifact into a folder."""
    return write_artifact


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Writes the ONNX file alone."""
    return _write_model


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact of the test's own, in `tmp_path/artifact`."""
    return write_artifact(tmp_path / "artifact")


def write_image(path: Path, color: tuple[int, int, int], *, side_px: int = 24) -> Path:
    """Writes an image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side_px + 6, side_px), color).save(path, quality=95)
    return path


@pytest.fixture(scope="session")
def paint() -> Callable[..., Path]:
    """Writes an image of one color."""
    return write_image


@pytest.fixture
def cudart(host_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """That GPU's driver and CUDA, on a machine with TensorRT."""
    library = host_gpu.HostCudart()
    _replace_cuda(monkeypatch, lambda name: library)
    monkeypatch.setitem(sys.modules, "tensorrt", host_gpu.HostTensorRT)
    return library


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the NVIDIA driver where there is one."""

    def refuse(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    _replace_cuda(monkeypatch, refuse)


@pytest.fixture
def cuda_libraries(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], None]:
    """Lets a function give NVIDIA's libraries by name; one that raises OSError has none."""
    return lambda find: _replace_cuda(monkeypatch, find)


def _replace_cuda(monkeypatch: pytest.MonkeyPatch, find: Callable[[str], Any]) -> None:
    load = ctypes.CDLL

    def open_library(name: Any, *arguments: Any, **options: Any) -> Any:
        if "libcuda" in str(name) or str(name).startswith("nvcuda"):
            return find(str(name))
        return load(name, *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", open_library)


@pytest.fixture
def system_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Gives a file of the system another text."""

    def give(file: str, text: str) -> None:
        read_text = Path.read_text

        def read(path: Path, *arguments: Any, **options: Any) -> str:
            return text if path == Path(file) else read_text(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", read)

    return give


@pytest.fixture
def jetson(system_file: Callable[[str, str], None]) -> None:
    """Lets the machine be a Jetson, by its device tree."""
    system_file("/proc/device-tree/model", "NVIDIA Jetson Orin Nano")
