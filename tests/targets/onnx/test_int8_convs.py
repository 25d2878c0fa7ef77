"""INT8 and FP16 of graphs with convolutions: which are quantized, with which scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.targets.onnx.graph import initializers, wide_convs
from kdedge.targets.onnx.half import to_fp16
from kdedge.targets.onnx.quantize import to_int8_cpu

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Run = Callable[[Path, np.ndarray], np.ndarray]


@pytest.fixture(scope="session", params=["convolutions", "with attention"])
def tower_onnx(
    request: Any, cnn_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The float32 file of a small student that is a CNN, or a CNN with attention."""
    if request.param == "convolutions":
        return cnn_files["fp32"]
    import torch
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    from kdedge.fold import fold
    from kdedge.methods.protocol import ImagePath
    from kdedge.runtime.preprocess import Preprocess
    from kdedge.targets.onnx.trace import write_onnx

    torch.manual_seed(0)
    inside = {"transformer_dim": 32, "transformer_depth": 1, "patch_size": 2}
    blocks = (
        ByoBlockCfg("bottle", d=1, c=32, s=2, gs=1, br=2.0),
        ByoBlockCfg("mobilevit", d=1, c=32, s=1, block_kwargs=inside),
    )
    encoder = ByobNet(ByoModelCfg(blocks, stem_chs=32, act_layer="silu"), num_classes=0)
    encoder.eval().requires_grad_(False)
    dim = encoder(torch.zeros(1, 3, 32, 32)).shape[1]
    vectors = torch.nn.functional.normalize(torch.randn(5, dim), dim=-1)
    preprocess = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = fold(ImagePath(encoder), vectors, scale=20.0, preprocess=preprocess)
    path = tmp_path_factory.mktemp("tower") / "model.onnx"
    write_onnx(model, path, size_px=32)
    return path


@pytest.fixture(scope="session")
def tower_int8(
    tower_onnx: Path,
    folded_images: np.ndarray,
    int8_by_maxima: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Its INT8 file for TensorRT."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    int8_by_maxima(tower_onnx, path, calibration=folded_images)
    return path


def test_wide_convolutions_have_one_scale_for_each_output_channel(
    tower_onnx: Path, tower_int8: Path
) -> None:
    model = onnx.load(tower_int8)
    constants = initializers(model)
    makers = {node.output[0]: node for node in model.graph.node}
    wide = {node.name for node in wide_convs(onnx.load(tower_onnx))}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert 0 < len(wide) < len(convs)
    for node in convs:
        made_by = [makers[x].op_type if x in makers else None for x in node.input[:2]]
        if node.name not in wide:
            assert "DequantizeLinear" not in made_by, node.name
            continue
        assert made_by == ["DequantizeLinear"] * 2, node.name
        weight, scales = (constants[x] for x in makers[node.input[1]].input[:2])
        assert weight.data_type == onnx.TensorProto.INT8
        assert list(scales.dims) == [weight.dims[0]]
        values = np.abs(onnx.numpy_helper.to_array(weight).astype(int))
        largest = values.max(axis=(1, 2, 3))  # timm begins with weights of 0 in some
        assert ((largest >= 126) | (largest == 0)).all()


def test_a_cnns_wide_convolutions_are_computed_in_bytes_on_a_cpu(
    tower_onnx: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    """ONNX Runtime's own graph has a product of bytes for each."""
    import onnxruntime

    original = onnx.load(tower_onnx)
    if any(node.op_type == "MatMul" for node in original.graph.node):
        pytest.skip("its linear layers are in INT8, and its convolutions are not")
    path = tmp_path / "model.onnx"
    to_int8_cpu(tower_onnx, path, calibration=folded_images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("QLinearConv") == len(wide_convs(original)) > 0
    constants = initializers(onnx.load(path))
    for node in wide_convs(original):
        levels = onnx.numpy_helper.to_array(constants[f"{node.name}/weight/levels"])
        assert (levels.dtype, np.abs(levels.astype(int)).max()) in ((np.int8, 64), (np.int8, 0))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-cpu"])
def test_lower_precisions_follow_the_float32_file(
    tower_onnx: Path, precision: str, folded_images: np.ndarray, folded_run: Run, request: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "model.onnx"
    if precision == "fp16":
        to_fp16(tower_onnx, path, images=folded_images)
    elif precision == "int8-cpu":
        to_int8_cpu(tower_onnx, path, calibration=folded_images)
    else:
        path = request.getfixturevalue("tower_int8")
    expected = folded_run(tower_onnx, folded_images)
    logits = folded_run(path, folded_images)
    limit = 0.01 if precision == "fp16" else 0.2
    spread = (expected - expected.mean(axis=0)).std()
    assert np.abs(logits - expected).mean() < limit * max(spread, 0.1)
    assert folded_run(path, folded_images[:1]).shape == (1, 5)  # any batch
