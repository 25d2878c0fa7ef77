"""Work counted in ONNX graphs against torch's count of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from kdedge.errors import DataError  # noqa: E402
from kdedge.targets.onnx.counts import count  # noqa: E402
from kdedge.targets.onnx.quantize import to_int8_cpu  # noqa: E402


def write(
    folder: Path,
    nodes: list[Any],
    weights: dict[str, np.ndarray],
    shape: list[Any],
    *,
    n_axes: int,
) -> Path:
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None] * n_axes)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("batch", ["batch", 4])
def test_a_product_is_its_outputs_times_what_each_sums(tmp_path: Path, batch: Any) -> None:
    weight = np.zeros((6, 5), np.float32)
    nodes = [onnx.helper.make_node("MatMul", ["images", "weight"], ["logits"])]
    path = write(tmp_path, nodes, {"weight": weight}, [batch, 7, 6], n_axes=3)
    assert count(path) == {"gmacs": pytest.approx(7 * 6 * 5 / 1e9), "parameters": 30}


def test_a_convolution_sums_over_channels_of_its_group_and_the_kernel(tmp_path: Path) -> None:
    weight = np.zeros((8, 2, 3, 3), np.float32)
    nodes = [onnx.helper.make_node("Conv", ["images", "w"], ["logits"], group=2, strides=[2, 2])]
    path = write(tmp_path, nodes, {"w": weight}, ["batch", 4, 9, 9], n_axes=4)
    outputs = 8 * 4 * 4
    assert count(path)["gmacs"] == pytest.approx(outputs * 2 * 3 * 3 / 1e9)


def test_a_transposed_gemm_sums_over_the_other_axis(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Gemm", ["w", "images"], ["logits"], transA=1, transB=1),
    ]
    path = write(tmp_path, nodes, {"w": np.zeros((6, 5), np.float32)}, ["batch", 6], n_axes=2)
    assert count(path)["gmacs"] == pytest.approx(5 * 1 * 6 / 1e9)


def test_the_files_of_an_export_need_what_the_folded_model_needs(
    folded_onnx: Path,
    folded_int8: Path,
    folded_images: np.ndarray,
    folded_export: Any,
    tiny_backbone: Any,
    tmp_path: Path,
) -> None:
    to_int8_cpu(folded_onnx, tmp_path / "cpu.onnx", calibration=folded_images)
    exact = count(folded_onnx)
    assert exact["gmacs"] > 0
    for path in (folded_int8, tmp_path / "cpu.onnx", folded_export(batch=3)):
        found = count(path)
        assert found["gmacs"] == pytest.approx(exact["gmacs"], rel=1e-12)
        # Scales and zero points come with bytes, and some constants are folded
        assert found["parameters"] == pytest.approx(exact["parameters"], rel=0.05)


def test_torch_counts_the_same(tiny_backbone: Any, tmp_path: Path) -> None:
    import torch

    from kdedge.evaluation.flops import count_gmacs
    from kdedge.fold import fold
    from kdedge.methods.protocol import ImagePath
    from kdedge.targets.onnx.trace import write_onnx

    model = fold(
        ImagePath(tiny_backbone.model.visual),
        torch.nn.functional.normalize(torch.randn(5, tiny_backbone.embed_dim), dim=-1),
        scale=20.0,
        preprocess=tiny_backbone.preprocess,
    )
    path = tmp_path / "model.onnx"
    write_onnx(model, path, size_px=32, batch="dynamic", metadata={})
    assert count(path)["gmacs"] == pytest.approx(count_gmacs(model, torch.zeros(1, 3, 32, 32)))


def test_a_size_that_does_not_follow_from_the_image_names_its_node(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("NonZero", ["images"], ["places"]),
        onnx.helper.make_node("Cast", ["places"], ["numbers"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("MatMul", ["w", "numbers"], ["logits"], name="odd one"),
    ]
    path = write(tmp_path, nodes, {"w": np.zeros((3, 2), np.float32)}, ["batch", 6], n_axes=2)
    with pytest.raises(DataError, match=r"the size of the node odd one \(MatMul\)"):
        count(path)
