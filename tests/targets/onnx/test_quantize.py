"""INT8 files, for TensorRT and for CPUs: what is in them, and that they answer as float32 does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.builders.onnx.quantize import to_int8_cpu
from kdedge.targets.onnx.graph import head_nodes, initializers, run_outputs, weight_matmuls
from kdedge.targets.onnx.half import absolute_maxima

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT, INT8, HALF = 1, 3, 10

TOLERANCE = 0.5
"""Of logits from -8 to 8, in eight bits through three blocks."""

Types = Callable[[Any], dict[str, int]]
Run = Callable[[Path, np.ndarray], np.ndarray]


@pytest.fixture
def int8(folded_runtime_files: dict[str, Path]) -> Any:
    return onnx.load(folded_runtime_files["int8"])


@pytest.fixture
def cpu(folded_runtime_files: dict[str, Path]) -> Any:
    return onnx.load(folded_runtime_files["int8-cpu"])


@pytest.fixture
def make(kind: str, int8_by_maxima: Callable[..., None]) -> Callable[..., None]:
    """Writes a kind of INT8 file."""
    return int8_by_maxima if kind == "gpu" else to_int8_cpu


def constant(model: Any, name: str) -> np.ndarray:
    return np.asarray(onnx.numpy_helper.to_array(initializers(model)[name]))


def nodes_by_name(model: Any) -> dict[str, Any]:
    return {node.name: node for node in model.graph.node}


def producers(model: Any) -> dict[str, Any]:
    return {name: node for node in model.graph.node for name in node.output}


def types_of(node: Any, types: dict[str, int]) -> set[int]:
    return {types[name] for name in (*node.input, *node.output) if name}


def test_each_linear_layer_reads_eight_bits_around_zero_with_one_scale(
    int8: Any, folded_graph: Any, folded_images: np.ndarray
) -> None:
    maxima, made_by = absolute_maxima(folded_graph, folded_images), producers(int8)
    layers = weight_matmuls(folded_graph)
    assert len(layers) == 18
    for layer in layers:
        dq = made_by[nodes_by_name(int8)[layer.name].input[0]]
        q = made_by[dq.input[0]]
        assert (dq.op_type, q.op_type) == ("DequantizeLinear", "QuantizeLinear")
        for node in (dq, q):
            zero = constant(int8, node.input[2])
            assert (zero.dtype, zero.tolist()) == (np.int8, 0)
            scale = constant(int8, node.input[1])
            assert scale.shape == ()
            # Stored in FP16
            assert 127 * float(scale) == pytest.approx(maxima[layer.input[0]], rel=1e-3)
        assert constant(int8, q.input[1]) == constant(int8, dq.input[1])


def test_weights_are_stored_in_eight_bits_with_a_scale_for_each_output_channel(
    int8: Any, folded_graph: Any
) -> None:
    made_by = producers(int8)
    for layer in weight_matmuls(folded_graph):
        dq = made_by[nodes_by_name(int8)[layer.name].input[1]]
        values, scales = (constant(int8, name) for name in dq.input[:2])
        weight = constant(folded_graph, layer.input[1])
        assert dq.op_type == "DequantizeLinear"
        assert [attribute.i for attribute in dq.attribute if attribute.name == "axis"] == [1]
        assert values.dtype == np.int8
        assert scales.shape == (weight.shape[1],)
        assert not constant(int8, dq.input[2]).any()
        assert (np.abs(values.astype(int)).max(axis=0) >= 126).all()
        scales = scales.astype(np.float64)
        # Rounding to the next level; the largest also lose what FP16 took from their scale
        atol = 0.501 * scales + 127 * scales * 2.0**-11
        assert (np.abs(values * scales - weight) <= atol).all()


def test_nothing_else_is_quantized(int8: Any, folded_graph: Any) -> None:
    layers, made_by = {node.name for node in weight_matmuls(folded_graph)}, producers(int8)
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        reads = [made_by[name].op_type for name in node.input if name in made_by]
        assert reads.count("DequantizeLinear") == (2 if node.name in layers else 0), node.name
    attention = [node for node in int8.graph.node if node.op_type == "MatMul"]
    assert len(attention) - len(layers) == 6


def test_a_tensor_that_three_layers_read_is_quantized_once(int8: Any) -> None:
    quantized = [node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert len(set(quantized)) == len(quantized)
    # In each block: ln_1, attention, ln_2 and GELU; in the last one the class token by itself
    assert len(quantized) == 3 * 4 + 1


def test_the_remaining_floats_of_the_blocks_are_fp16(int8: Any, folded_types: Types) -> None:
    types, head = folded_types(int8), head_nodes(int8)
    computing = ("MatMul", "Conv", "LayerNormalization", "Softmax", "Add", "Mul", "Sigmoid")
    for node in int8.graph.node:
        if node.op_type in computing and node.name not in head:
            assert types_of(node, types) == {HALF}, node.name
        if node.op_type == "DequantizeLinear":
            assert types_of(node, types) == {HALF, INT8}, node.name
    for name in ("hidden/Gemm", "fused_head/Gemm", "features/Gemm", "Div"):
        assert types_of(nodes_by_name(int8)[name], types) == {FLOAT}, name
    for value in (*int8.graph.input, *int8.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT
    operators = [node.op_type for node in int8.graph.node]
    assert operators.count("Cast") == 2 + operators.count("QuantizeLinear")


def test_what_is_quantized_is_rounded_to_the_nearest_level(
    int8: Any, folded_images: np.ndarray
) -> None:
    # ONNX Runtime's FP16 kernel for CPUs would cut off: three in four values would be another
    made_by = producers(int8)
    quantizer = next(node for node in int8.graph.node if node.op_type == "QuantizeLinear")
    half_values = made_by[quantizer.input[0]].input[0]
    measured = onnx.ModelProto()
    measured.CopyFrom(int8)
    for name, kind in ((half_values, HALF), (quantizer.output[0], INT8)):
        measured.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    session = onnxruntime.InferenceSession(
        measured.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _, values, quantized = session.run(None, {"images": folded_images})
    scale = constant(int8, quantizer.input[1])
    levels = np.rint(values.astype(np.float32) / scale).clip(-128, 127)
    assert (levels != np.trunc(values.astype(np.float32) / scale)).mean() > 0.2
    assert (levels == quantized).mean() > 0.999


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_logits_stay_near_those_of_float32_and_classes_the_same(
    folded_onnx: Path,
    folded_runtime_files: dict[str, Path],
    folded_images: np.ndarray,
    folded_run: Run,
    precision: str,
) -> None:
    path = folded_runtime_files[precision]
    expected, actual = (folded_run(each, folded_images) for each in (folded_onnx, path))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    assert not np.allclose(actual, expected, rtol=0, atol=1e-3)  # it is quantized
    is_clear = np.diff(np.sort(expected, axis=1))[:, -1] > TOLERANCE
    assert is_clear.sum() > 8
    assert len(set(expected[is_clear].argmax(axis=1))) > 3
    np.testing.assert_array_equal(actual.argmax(axis=1)[is_clear], expected.argmax(1)[is_clear])


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-cpu"])
def test_names_metadata_and_every_batch_are_kept(
    folded_runtime_files: dict[str, Path],
    folded_graph: Any,
    folded_images: np.ndarray,
    folded_run: Run,
    precision: str,
) -> None:
    path = folded_runtime_files[precision]
    model = onnx.load(path)
    assert nodes_by_name(folded_graph).keys() <= nodes_by_name(model).keys()
    assert model.metadata_props == folded_graph.metadata_props
    assert len(model.metadata_props) == 2
    # With INT8, the opset is the first with FP16 scales
    opset = 19 if precision == "int8" else folded_graph.opset_import[0].version
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert model.ir_version == folded_graph.ir_version
    assert model.graph.name == folded_graph.graph.name
    assert model.graph.input == folded_graph.graph.input
    assert model.graph.output == folded_graph.graph.output
    for n_images in (1, 3, 24):
        logits = folded_run(path, folded_images[:n_images])
        assert logits.shape == (n_images, 6)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize(("kind", "precision"), [("gpu", "int8"), ("cpu", "int8-cpu")])
def test_the_same_file_comes_out_twice(
    folded_onnx: Path,
    folded_runtime_files: dict[str, Path],
    folded_images: np.ndarray,
    tmp_path: Path,
    make: Callable[..., None],
    precision: str,
) -> None:
    make(folded_onnx, tmp_path / "again", calibration=folded_images)
    assert (tmp_path / "again").read_bytes() == folded_runtime_files[precision].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_graph_for_one_image_of_bytes_is_quantized_too(
    folded_export: Callable[..., Path],
    folded_images: np.ndarray,
    folded_run: Run,
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[..., None],
) -> None:
    source, images = (
        folded_export(batches=(1, 1), pixels="uint8"),
        (255 * folded_images).astype(np.uint8),
    )
    output = tmp_path_factory.mktemp("out") / "model.onnx"
    make(source, output, calibration=images)
    for image in images[:3]:
        expected, actual = (folded_run(path, image[None]) for path in (source, output))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_a_channel_beyond_the_range_of_fp16_stays_float32_here_too(
    folded_large_channel: Path,
    folded_images: np.ndarray,
    folded_run: Run,
    int8_by_maxima: Callable[..., None],
    tmp_path: Path,
) -> None:
    int8_by_maxima(folded_large_channel, tmp_path / "model.onnx", calibration=folded_images)
    expected = folded_run(folded_large_channel, folded_images)
    actual = folded_run(tmp_path / "model.onnx", folded_images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("gpu", 0.0), ("cpu", 0.0), ("gpu", 1e-9)],  # the last one's scale is 0 in FP16
)
def test_an_output_channel_of_zeros_gives_zeros(
    folded_graph: Any,
    folded_images: np.ndarray,
    folded_run: Run,
    tmp_path: Path,
    make: Callable[..., None],
    value: float,
) -> None:
    for layer in weight_matmuls(folded_graph)[::2]:
        weight = constant(folded_graph, layer.input[1]).copy()
        weight[:, 7] = value
        tensor = initializers(folded_graph)[layer.input[1]]
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(folded_graph, tmp_path / "zeros.onnx")
    make(tmp_path / "zeros.onnx", tmp_path / "model.onnx", calibration=folded_images)
    expected, actual = (
        folded_run(tmp_path / name, folded_images) for name in ("zeros.onnx", "model.onnx")
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_on_cpus_weights_have_seven_bits_and_a_scale_for_each_output_channel(
    cpu: Any, folded_graph: Any
) -> None:
    for layer in weight_matmuls(folded_graph):
        node = nodes_by_name(cpu)[layer.name]
        assert node.op_type == "MatMulInteger"
        assert len(node.input) == 3  # weights have no zero point
        weight = constant(folded_graph, layer.input[1])
        values = constant(cpu, node.input[1])
        scales = constant(cpu, f"{layer.name}/scale")
        assert values.dtype == np.int8
        np.testing.assert_array_equal(np.abs(values.astype(int)).max(axis=0), 64)
        np.testing.assert_allclose(scales, np.abs(weight).max(axis=0) / 64, rtol=1e-6)
        assert (np.abs(values * scales - weight) <= 0.5001 * scales).all()


@pytest.mark.parametrize("name", ["blocks.0.query", "blocks.1.mlp.c_proj", "blocks.2.mlp.c_fc"])
def test_a_layer_on_a_cpu_is_the_dynamic_product_written_out(
    cpu: Any, folded_graph: Any, folded_images: np.ndarray, name: str
) -> None:
    (layer,) = (node for node in weight_matmuls(folded_graph) if node.name == f"{name}/MatMul")
    outputs = [layer.input[0], layer.output[0]]
    x, actual = next(iter(run_outputs(cpu, outputs, folded_images)))

    # ONNX, DynamicQuantizeLinear: a range that holds 0, in 256 levels
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(x / scale) + zero, 0, 255)
    weight = constant(folded_graph, layer.input[1])
    step = np.abs(weight).max(axis=0) / 64
    expected = ((levels - zero) @ np.rint(weight / step)) * scale * step

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(x @ weight - expected).max() > 1e-3  # and not the float product


def test_on_cpus_all_but_the_linear_layers_stays_float32(
    cpu: Any, folded_graph: Any, folded_types: Types
) -> None:
    assert HALF not in folded_types(cpu).values()
    operators = [node.op_type for node in cpu.graph.node]
    assert operators.count("MatMulInteger") == 18
    assert operators.count("MatMul") == 6  # attention's
    assert operators.count("DynamicQuantizeLinear") == 3 * 4 + 1
    for name in ("patch_conv/Conv", "hidden/Gemm", "features/Gemm"):
        new, old = nodes_by_name(cpu)[name], nodes_by_name(folded_graph)[name]
        assert new.op_type == old.op_type
        for index in range(1, len(old.input)):
            np.testing.assert_array_equal(
                constant(cpu, new.input[index]), constant(folded_graph, old.input[index])
            )


def test_on_cpus_the_head_is_fitted_to_the_features_in_eight_bits(
    cpu: Any, folded_graph: Any, folded_images: np.ndarray
) -> None:
    """Against ridge regression with one row and one column for each feature."""
    new, old = nodes_by_name(cpu)["fused_head/Gemm"], nodes_by_name(folded_graph)["fused_head/Gemm"]
    weight = constant(folded_graph, old.input[1]).astype(np.float64)
    bias = constant(folded_graph, old.input[2]) if len(old.input) > 2 else np.zeros(len(weight))
    rows, expected = (
        np.concatenate([values for (values,) in run_outputs(model, [name], folded_images)])
        for model, name in ((cpu, new.input[0]), (folded_graph, old.output[0]))
    )
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1).astype(np.float64)
    before = np.concatenate([weight, bias[:, None]], axis=1).T  # [D + 1, C]
    moments = rows.T @ rows / len(rows) + np.square(rows).mean() * np.eye(rows.shape[1])
    change = np.linalg.solve(moments, rows.T @ (expected - rows @ before) / len(rows))
    fitted = np.concatenate([constant(cpu, new.input[1]), constant(cpu, new.input[2])[:, None]], 1)
    np.testing.assert_allclose(fitted.T, before + change, rtol=1e-4, atol=1e-5)
    lost, without = (np.square(expected - rows @ head).sum() for head in (fitted.T, before))
    assert lost < without
