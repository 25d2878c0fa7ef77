"""INT8 and FP16 of graphs with convolutions: which are quantized, with which scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdedge.builders.onnx.quantize import to_int8_cpu
from kdedge.builders.onnx.trace import write_onnx
from kdedge.fold import FoldRequest, fold
from kdedge.methods.base import ImageModules
from kdedge.runtime.preprocess import Preprocess
from kdedge.targets.onnx.graph import extremes, initializers, run_outputs, wide_convs
from kdedge.targets.onnx.half import to_fp16

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
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    torch.manual_seed(0)
    inside = {"transformer_dim": 32, "transformer_depth": 1, "patch_size": 2}
    blocks = (
        ByoBlockCfg("bottle", d=1, c=32, s=2, gs=1, br=2.0),
        ByoBlockCfg("mobilevit", d=1, c=32, s=1, block_kwargs=inside),
    )
    encoder = ByobNet(ByoModelCfg(blocks, stem_chs=32, act_layer="silu"), num_classes=0)
    encoder.eval().requires_grad_(False)
    dim = encoder(torch.zeros(1, 3, 32, 32)).shape[1]
    return write_model(encoder, dim, tmp_path_factory.mktemp("tower") / "model.onnx")


def write_model(encoder: torch.nn.Module, dim: int, path: Path) -> Path:
    """The float32 file of an encoder [B, 3, 32, 32] -> [B, dim] with five classes."""
    vectors = torch.nn.functional.normalize(torch.randn(5, dim), dim=-1)
    preprocess = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = fold(ImageModules(encoder), FoldRequest(vectors, scale=20.0, preprocess=preprocess))
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


class Residual(torch.nn.Module):
    """Layers of EfficientNet-Lite: convolutions, a depthwise one, ReLU6, a sum; a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.wide = torch.nn.Conv2d(16, 32, 1)
        self.depthwise = torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.narrow = torch.nn.Conv2d(32, 16, 1, bias=False)
        self.linears = torch.nn.ModuleList(torch.nn.Linear(16, 16, bias=x) for x in (True, False))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(images).clamp(0, 6))
        x = (x + self.block(x)).mean(dim=(2, 3))
        for linear in self.linears:
            x = linear(x).relu()
        return x

    def block(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.wide(x).clamp(0, 6)).clamp(0, 6)
        return self.narrow(x)


@pytest.fixture(scope="module")
def residual_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_model(Residual(), 16, tmp_path_factory.mktemp("residual") / "model.onnx")


def test_a_cnn_is_computed_in_bytes_on_a_cpu(
    residual_onnx: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    """In ONNX Runtime's own graph only the first convolution has floats; sums have bytes too."""
    import onnxruntime

    path = tmp_path / "model.onnx"
    to_int8_cpu(residual_onnx, path, calibration=folded_images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    in_bytes = ("QLinearConv", "QLinearAdd", "DynamicQuantizeMatMul")
    assert [found[name] for name in (*in_bytes, "Conv")] == [6, 1, 2, 1], found
    constants = initializers(onnx.load(path))
    for node in onnx.load(residual_onnx).graph.node:
        if node.op_type != "Conv" or "stem" in node.name:
            continue
        levels = onnx.numpy_helper.to_array(constants[f"{node.name}/weight/levels"])
        largest = 127 if "depthwise" in node.name else 64
        assert (levels.dtype, np.abs(levels.astype(int)).max()) == (np.int8, largest)


def test_a_convolutions_bias_makes_up_for_its_rounded_weight(
    residual_onnx: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    """Against the plain difference of two convolutions, within the bias's own step."""
    path = tmp_path / "model.onnx"
    to_int8_cpu(residual_onnx, path, calibration=folded_images)
    model = onnx.load(residual_onnx)
    constants = {
        name: onnx.numpy_helper.to_array(tensor)
        for name, tensor in {**initializers(model), **initializers(onnx.load(path))}.items()
    }
    largest = 0.0
    for node in model.graph.node:
        if node.op_type != "Conv" or "stem" in node.name:
            continue
        inputs = np.concatenate([x for (x,) in run_outputs(model, [node.input[0]], folded_images)])
        levels = constants[f"{node.name}/weight/levels"]
        rounded = levels * constants[f"{node.name}/weight/scale"][:, None, None, None]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        difference = torch.nn.functional.conv2d(
            torch.from_numpy(inputs),
            torch.from_numpy(constants[node.input[1]] - rounded),
            padding=attributes["pads"][0],
            groups=attributes["group"],
        ).mean(dim=(0, 2, 3))
        bias = constants[node.input[2]] if len(node.input) > 2 else 0.0
        step = constants[f"{node.name}/bias/scale"]
        stored = constants[f"{node.name}/bias/levels"] * step
        np.testing.assert_array_less(np.abs(stored - bias - difference.numpy()), 0.51 * step)
        largest = max(largest, float((difference.abs().numpy() / step).max()))
    assert largest > 10  # steps: there was something to make up for


def test_an_activations_zero_point_is_the_level_nearest_to_its_zero(
    residual_onnx: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    to_int8_cpu(residual_onnx, path, calibration=folded_images)
    model = onnx.load(path)
    constants = initializers(model)
    fractions = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:])
        original = node.input[0]
        (low, high) = extremes(onnx.load(residual_onnx), [original], folded_images)[original]
        exact = -min(low, 0.0) / scale
        assert abs(int(zero) - exact) < 0.501
        assert scale == pytest.approx((max(high, 0.0) - min(low, 0.0)) / 255, rel=1e-5)
        fractions.append(exact % 1)
    assert max(fractions) > 0.5  # at least one is rounded up


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
