"""FP8 files against E4M3 casts of torch, and their refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from kdedge.errors import DataError, RecipeError  # noqa: E402
from kdedge.targets.onnx import half  # noqa: E402
from kdedge.targets.onnx.fp8 import scale_of, to_fp8  # noqa: E402
from kdedge.targets.onnx.graph import initializers, load_graph, weight_matmuls  # noqa: E402

Run = Callable[[Path, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def fp8(
    folded_onnx: Path, folded_images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("fp8") / "model.fp8.onnx"
    to_fp8(folded_onnx, path, calibration=folded_images)
    return path


def cast(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What E4M3 makes of values, by torch's cast."""
    scaled = torch.from_numpy(np.asarray(values / scale, dtype=np.float32)).clamp(-448, 448)
    return scaled.to(torch.float8_e4m3fn).float().numpy() * scale


def test_each_linear_layer_has_one_scale_for_its_input_and_one_for_weights_in_fp8(
    fp8: Path, folded_onnx: Path, folded_images: np.ndarray
) -> None:
    source, model = load_graph(folded_onnx), load_graph(fp8)
    maxima = half.absolute_maxima(source, folded_images)
    before, after = initializers(source), initializers(model)
    nodes = {node.name: node for node in model.graph.node}
    made = {name: node for node in model.graph.node for name in node.output}

    def constant(tensors: Any, name: str) -> np.ndarray:
        return np.asarray(onnx.numpy_helper.to_array(tensors[name]).astype(np.float32))

    layers = weight_matmuls(source)
    assert len(layers) == 18
    for layer in layers:
        x, weight = (made[name] for name in nodes[layer.name].input[:2])
        quantizer = made[x.input[0]]
        assert [n.op_type for n in (quantizer, x)] == ["QuantizeLinear", "DequantizeLinear"]
        assert after[x.input[2]].data_type == onnx.TensorProto.FLOAT8E4M3FN
        for node in (quantizer, x):
            assert constant(after, node.input[1]) == scale_of(maxima[layer.input[0]])
        values = constant(before, layer.input[1])
        scale = scale_of(float(np.abs(values).max()))
        assert after[weight.input[0]].data_type == onnx.TensorProto.FLOAT8E4M3FN
        stored = constant(after, weight.input[0]) * constant(after, weight.input[1])
        assert np.array_equal(stored, cast(values, scale))
    quantized = [n.name for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantized) == len({layer.input[0] for layer in layers})


def test_the_file_computes_with_e4m3_values(
    fp8: Path,
    folded_onnx: Path,
    folded_images: np.ndarray,
    folded_run: Run,
    tmp_path: Path,
) -> None:
    """One layer is computed as the file says: input and weight cast by torch, then multiplied."""
    source, model = load_graph(folded_onnx), load_graph(fp8)
    layer = weight_matmuls(source)[0]
    nodes = {node.name: node for node in model.graph.node}
    made = {name: node for node in model.graph.node for name in node.output}
    dq = made[nodes[layer.name].input[0]]
    quantizer = made[dq.input[0]]
    # The float tensor before, and the float tensor after
    for name in (quantizer.input[0], dq.output[0]):
        model.graph.output.add(name=name)
    path = tmp_path / "probe.onnx"
    onnx.save(model, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, before, after = session.run(None, {"images": folded_images})
    maxima = half.absolute_maxima(source, folded_images)
    scale = scale_of(maxima[layer.input[0]])
    expected = cast(before.astype(np.float32), scale)
    assert np.array_equal(after.astype(np.float32), expected.astype(np.float16).astype(np.float32))
    float32, logits = folded_run(folded_onnx, folded_images), folded_run(fp8, folded_images)
    assert 1e-3 < np.abs(logits - float32).max() < 2
    assert (logits.argmax(axis=1) == float32.argmax(axis=1)).mean() > 0.8


def test_a_dead_weight_gets_a_scale_of_its_own() -> None:
    assert scale_of(0.0) == np.float16(1 / 448)
    assert scale_of(1e-9) == np.finfo(np.float16).smallest_normal
    assert scale_of(448.0) == 1


def test_a_model_without_linear_layers_and_without_images_is_refused(
    cnn_files: dict[str, Path], folded_onnx: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="has no linear layers on tokens"):
        to_fp8(cnn_files["fp32"], tmp_path / "cnn.onnx", calibration=folded_images)
    with pytest.raises(DataError, match="no images for FP8 calibration"):
        to_fp8(folded_onnx, tmp_path / "none.onnx", calibration=folded_images[:0])
    assert list(tmp_path.iterdir()) == []
