"""A folded student as ONNX files, and images for it: what a change of precision starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.methods.base import MethodInputs

METADATA = {"class_names": ["a", "é", "c", "d", "e", "f"], "head": "scores"}

Run = Callable[[Path, np.ndarray], np.ndarray]


class Vectors:
    """A teacher of which only the feature dimension is known."""

    scale = 20.0

    def class_vectors(self) -> Any:
        import torch

        return torch.eye(40)[:6]


@pytest.fixture(scope="session")
def folded_images() -> np.ndarray:
    """[24, 3, 32, 32], 0-1: colored tiles, each image under a light of its own."""
    rng = np.random.default_rng(0)
    tiles = rng.random((24, 3, 4, 4)) * rng.random((24, 3, 1, 1))
    return tiles.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)


@pytest.fixture(scope="session")
def folded_export(
    tiny_backbone: Any, folded_images: np.ndarray, made_once: Callable[..., Path]
) -> Callable[..., Path]:
    """Writes a student with six classes as float32 ONNX; its images are not all of one class."""
    import torch

    from kdedge.builders.onnx.trace import write_onnx
    from kdedge.fold import FoldRequest, fold
    from kdedge.methods import promptkd

    student = promptkd.Method(
        tiny_backbone,
        promptkd.Settings(prompt_depth=2),
        MethodInputs(
            [f"class {index}" for index in range(6)],
            "{}",
            range(6),
            torch.Generator().manual_seed(0),
            teacher=Vectors(),
        ),
    )
    preprocess = tiny_backbone.preprocess
    mean, std = (np.float32(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        normalized = torch.from_numpy((folded_images - mean) / std)
        features = student.forward_features(normalized).numpy()
    # What all images share would give them all one answer
    shared = features.mean(axis=0) / np.linalg.norm(features.mean(axis=0))
    directions = np.linalg.svd(features - np.outer(features @ shared, shared))[2][:3]
    vectors = np.concatenate([directions, -directions])

    def write(*, batches: tuple[int, int] = (1, 32), **options: Any) -> Path:
        def make(folder: Path) -> None:
            given = {"scale": student.scale, "preprocess": preprocess, **options}
            request = FoldRequest(torch.from_numpy(vectors), **given)
            path, model = folder / "model.onnx", fold(student.image_modules(), request)
            write_onnx(model, path, size_px=32, batches=batches, metadata=METADATA)

        return made_once(f"folded {batches} {options}", make) / "model.onnx"

    return write


@pytest.fixture(scope="session")
def folded_onnx(folded_export: Callable[..., Path]) -> Path:
    """The float32 file: any batch, float pixels, head that gives scores."""
    return folded_export()


@pytest.fixture
def folded_graph(folded_onnx: Path) -> Any:
    """Its graph, to change."""
    import onnx

    return onnx.load(folded_onnx)


@pytest.fixture(scope="session")
def folded_run() -> Run:
    """Runs images through a file with ONNX Runtime and gives its logits."""
    import onnxruntime

    def run(path: Path, images: np.ndarray) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": images})
        return np.asarray(logits)

    return run


@pytest.fixture(scope="session")
def folded_types() -> Callable[[Any], dict[str, int]]:
    """Gives the element type of each tensor of a graph."""
    import onnx

    def types(model: Any) -> dict[str, int]:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in values} | {
            tensor.name: tensor.data_type for tensor in graph.initializer
        }

    return types


@pytest.fixture(scope="session")
def folded_runtime_files(
    folded_onnx: Path,
    folded_images: np.ndarray,
    int8_by_maxima: Callable[..., None],
    made_once: Callable[..., Path],
) -> dict[str, Path]:
    """Its files in lower precisions, by their names; that in INT8 is for TensorRT."""
    from kdedge.builders.onnx.quantize import to_int8_cpu
    from kdedge.targets.onnx.half import to_fp16

    def make(folder: Path) -> None:
        to_fp16(folded_onnx, folder / "fp16.onnx", images=folded_images)
        int8_by_maxima(folded_onnx, folder / "int8.onnx", calibration=folded_images)
        to_int8_cpu(folded_onnx, folder / "int8-cpu.onnx", calibration=folded_images)

    folder = made_once("folded in lower precisions", make)
    return {name: folder / f"{name}.onnx" for name in ("fp16", "int8", "int8-cpu")}


@pytest.fixture
def folded_large_channel(folded_graph: Any, tmp_path: Path) -> Path:
    """The float32 file with a channel that the first block raises above 1e5, by weights of 1e3."""
    import onnx

    (node,) = (n for n in folded_graph.graph.node if n.name == "blocks.0.mlp.c_proj/MatMul")
    (weight,) = (t for t in folded_graph.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 3] = 1e3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path = tmp_path / "large.onnx"
    onnx.save(folded_graph, path)
    return path
