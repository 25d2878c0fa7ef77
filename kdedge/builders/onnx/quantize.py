"""INT8: the encoder's linear layers and convolutions in eight bits, for TensorRT and for CPUs.

The search (`quantization.search`) has moved range from activations into weights, for both. Neither
quantizes the first convolution, the two matrix products of attention, softmax, normalization and
the head; depthwise convolutions are quantized for CPUs only. These choices come from photos100,
with real photos and the ViT of a small CLIP (`benchmarks/README.md`):

- Q/DQ on the products of attention, on the residual branches and on the inputs of LayerNorm, as
  ModelOpt places it by default, costs four more points of agreement; FP16 attention is one fused
  kernel;
- ranges by the largest value give the same agreement as ranges by entropy or squared error;
- on CPUs, ranges of linear layers from each call (dynamic) give better agreement and run faster
  than fixed ranges. ONNX Runtime's convolutions of bytes are fast with fixed ranges only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.builders.onnx.insert import insert_qdq
from kdedge.quantization.fake import QuantizedLayer
from kdedge.targets.base import CPU_WEIGHT_LEVELS
from kdedge.targets.onnx import half
from kdedge.targets.onnx.graph import (
    MIN_CHANNELS,
    consumers,
    drop_unused,
    extremes,
    head_nodes,
    initializers,
    load_graph,
    quantizer_pair,
    run_outputs,
    save_graph,
    set_initializer,
    set_nodes,
    weight_dequantizer,
    weight_matmuls,
)

# Name of the node that gives a closed list of classes its logits; torch's exporter makes it, with
# a weight [C, D]
HEAD_NODE = "fused_head/Gemm"

# The lowest opset whose Q/DQ take FP16 scales
QDQ_OPSET = 19


def to_int8(
    onnx_path: Path,
    output: Path,
    *,
    calibration: npt.NDArray[Any],
    layers: Mapping[str, QuantizedLayer],
) -> None:
    """Writes the INT8 graph for TensorRT, complete or not at all.

    Explicit symmetric Q/DQ (opset 19): activations per tensor, weights per output channel and
    stored as INT8. Everything else is FP16 as in `half`. Node names and metadata are kept.

    Args:
        onnx_path: a float32 file of `builders.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images of the deployment.
        layers: quantized layers by their names in `insert.quantizable`; other layers are FP16.

    Raises:
        DataError: the weights are too large for one file.
        ResourceError: the disk is full.
    """
    model = load_graph(onnx_path)
    maxima = half.absolute_maxima(model, calibration)
    # From the exporter's opset to this one, operators only got additional types and attributes
    for opset in model.opset_import:
        opset.version = opset.version if opset.domain else QDQ_OPSET
    insert_qdq(model, layers)
    half.convert(model, maxima)
    save_graph(model, output)


def to_int8_cpu(onnx_path: Path, output: Path, *, calibration: npt.NDArray[Any]) -> None:
    """Writes the INT8 graph for ONNX Runtime on CPUs, complete or not at all.

    Linear layers multiply bytes: 7-bit weights with one scale per output channel, and activations
    with a scale computed from each batch. The rest is float32; the head is fitted to the rounded
    features. In a CNN, which has no linear layers in its blocks, convolutions multiply bytes, too,
    with fixed ranges (`quantize_convs`). Node names, metadata and opset are kept.

    Args:
        onnx_path: a float32 file of `builders.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images, for the head and a CNN's
            ranges.

    Raises:
        DataError: the weights are too large for one file.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    if not weight_matmuls(model):
        quantize_convs(model, calibration)
        _split_linear(model)
    _make_dynamic(model)
    _refit_head(model, load_graph(onnx_path), calibration)
    drop_unused(model)
    save_graph(model, output)


def _refit_head(model: Any, float32: Any, images: npt.NDArray[Any]) -> None:
    """Refits the head, a linear layer in float, to the features in INT8.

    This is a ridge regression of the outputs' error, regularized by the features' mean square. A
    head that depends on small differences, such as a regression's, would otherwise turn rounding
    into other classes. Measured agreement rises by 0.2 to 2 points, least for an EfficientNet.

    Args:
        model: the INT8 graph, which is changed in place; with open classes it has no such head.
        float32: the graph from which it was made.
        images: real images, as the graphs take them.
    """
    from onnx import numpy_helper

    head = next((node for node in model.graph.node if node.name == HEAD_NODE), None)
    if head is None:
        return
    x, weight, *_ = head.input
    (y,) = head.output
    constants = initializers(model)
    if len(head.input) == 2:  # a bias of zero is not in the graph
        head.input.append(f"{HEAD_NODE}/bias")
        set_initializer(model, head.input[2], np.zeros(constants[weight].dims[0], np.float32))
        constants = initializers(model)
    features, outputs = zip(*run_outputs(model, [x, y], images), strict=True)
    expected = np.concatenate([out for (out,) in run_outputs(float32, [y], images)])
    rows = np.concatenate(features).astype(np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    gram = rows @ rows.T / len(rows)
    gram[np.diag_indices_from(gram)] += np.square(rows).mean()
    errors = expected.astype(np.float64) - np.concatenate(outputs)
    change = rows.T @ np.linalg.solve(gram, errors) / len(rows)  # [D + 1, C]
    for name, values in ((weight, change[:-1].T), (head.input[2], change[-1])):
        before = numpy_helper.to_array(constants[name])
        set_initializer(model, name, (before + values).astype(np.float32))


def _split_linear(model: Any) -> None:
    """Splits each linear layer of a CNN's encoder, which torch exports as Gemm, into two nodes."""
    from onnx import helper, numpy_helper

    head = head_nodes(model)
    constants = initializers(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name in head or node.input[1] not in constants:
            nodes.append(node)
            continue
        x, weight = node.input[:2]
        biases = [bias for bias in node.input[2:] if bias]
        values = numpy_helper.to_array(constants[weight])
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        set_initializer(model, f"{node.name}/weight", values.T if is_transposed else values)
        product = f"{node.name}/product" if biases else node.output[0]
        inputs = [x, f"{node.name}/weight"]
        nodes.append(helper.make_node("MatMul", inputs, [product], name=node.name))
        if biases:
            add = helper.make_node("Add", [product, *biases], node.output, name=f"{node.name}/Add")
            nodes.append(add)
    set_nodes(model, nodes)


def _make_dynamic(model: Any) -> None:
    """Replaces the encoder's linear layers by products of bytes, in a form that ORT fuses."""
    from onnx import helper, numpy_helper

    linear = {node.name for node in weight_matmuls(model)}
    constants = initializers(model)
    quantized: set[str] = set()
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name not in linear:
            nodes.append(node)
            continue
        x, weight = node.input
        name = node.name
        q = f"{x}/int8"
        scale = f"{x}/scale"
        zero = f"{x}/zero_point"
        if x not in quantized:
            quantized.add(x)
            kind = "DynamicQuantizeLinear"
            nodes.append(helper.make_node(kind, [x], [q, scale, zero], name=f"{x}/{kind}"))
        rounded = _quantize(numpy_helper.to_array(constants[weight]), CPU_WEIGHT_LEVELS)
        set_initializer(model, f"{name}/int8", rounded.levels)
        set_initializer(model, f"{name}/scale", rounded.scales)
        total = f"{name}/sum"
        product = f"{name}/scales"
        nodes += [
            helper.make_node("MatMulInteger", [q, f"{name}/int8", zero], [total], name=name),
            helper.make_node("Cast", [total], [f"{name}/float"], name=f"{name}/Cast", to=1),
            helper.make_node("Mul", [scale, f"{name}/scale"], [product], name=f"{name}/Mul"),
            helper.make_node("Mul", [f"{name}/float", product], node.output, name=f"{name}/Mul_2"),
        ]
    set_nodes(model, nodes)


class _Rounded(NamedTuple):
    """A weight in INT8: levels [K, N], and a scale for each column, [N]."""

    levels: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def _quantize(weight: npt.NDArray[Any], n_levels: int) -> _Rounded:
    """Rounds a weight [K, N] to symmetric integers from -n_levels to n_levels."""
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest, 1.0) / n_levels
    levels = np.rint(weight / scales).clip(-n_levels, n_levels).astype(np.int8)
    return _Rounded(levels, scales.astype(np.float32))


_STEPS = 255  # between the 256 values of an unsigned byte
_DEPTHWISE_LEVELS = 127  # ONNX Runtime multiplies them in 16 bits, without overflow
_FUSED = ("Relu", "Clip")  # activation functions that are free with quantization to unsigned bytes


def quantize_convs(model: Any, calibration: npt.NDArray[Any]) -> None:
    """Inserts Q/DQ at wide convolutions, at others between them, and at sums of their outputs.

    Activations are unsigned bytes with one range each; weights have one scale per output channel.
    Rounding of weights shifts the mean of each channel, most in depthwise convolutions. Biases are
    corrected by this shift (Nagel et al., "Data-Free Quantization Through Weight Equalization and
    Bias Correction", 2019, section 4.2), which is measured on images here.

    Args:
        model: a float32 graph; it is changed in place.
        calibration: [N, 3, S, S], real images, whose smallest and largest values are the ranges.
    """
    found = _find_convs(model)
    convs = found.convs
    ends = found.ends
    if not convs:
        return
    shifts = _output_shifts(model, convs, calibration)
    reads = {conv.node.input[0] for conv in convs.values()}
    ranges = extremes(model, sorted(reads | ends), calibration)
    nodes: list[Any] = []
    dequantized: dict[str, str] = {}
    for node in list(model.graph.node):
        conv = convs.get(node.name)
        if conv is not None:
            x = node.input[0]
            if x not in dequantized:
                nodes += _activation_nodes(model, x, *ranges[x])
                dequantized[x] = nodes[-1].output[0]
            nodes += _constant_nodes(model, conv, _scale(*ranges[x]), shifts[node.name])
        for index, x in enumerate(node.input):
            is_input_of_conv = conv is not None and index == 0
            if is_input_of_conv or x in ends:  # every reader of an end gets bytes
                node.input[index] = dequantized[x]
        nodes.append(node)
        for output in ends.intersection(node.output):
            nodes += _activation_nodes(model, output, *ranges[output])
            dequantized[output] = nodes[-1].output[0]
    set_nodes(model, nodes)


@dataclass(frozen=True)
class _Conv:
    """A convolution, its weight and levels [O, I, H, W], and a scale for each output channel."""

    node: Any
    weight: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _FoundConvs:
    """What becomes bytes.

    Attributes:
        convs: the convolutions in INT8, by name.
        ends: the tensors after them.
    """

    convs: dict[str, _Conv]
    ends: set[str]


def _find_convs(model: Any) -> _FoundConvs:
    """The convolutions that are quantized, and their outputs.

    ONNX Runtime itself quantizes a narrow convolution that stays float between bytes, with one
    scale for all channels; EfficientNet-Lite0 then has 93 % agreement instead of 98.6. With floats
    before or after it, such as after SiLU, a narrow convolution is faster in float.
    """
    from onnx import numpy_helper

    constants = initializers(model)
    readers = consumers(model)
    convs: dict[str, _Conv] = {}
    ends: set[str] = set()
    for node in model.graph.node:
        read_by = readers.get(node.output[0], [])
        is_fused = len(read_by) == 1 and read_by[0].op_type in _FUSED
        end = str(read_by[0].output[0] if is_fused else node.output[0])
        if node.op_type == "Conv" and node.input[1] in constants:
            weight = numpy_helper.to_array(constants[node.input[1]])
            is_between_bytes = is_fused and node.input[0] in ends
            if weight.shape[1] >= MIN_CHANNELS or is_between_bytes:
                groups = next((a.i for a in node.attribute if a.name == "group"), 1)
                is_depthwise = weight.shape[1] == 1 and len(weight) == groups
                n_levels = _DEPTHWISE_LEVELS if is_depthwise else CPU_WEIGHT_LEVELS
                rounded = _quantize(weight.reshape(len(weight), -1).T, n_levels)
                levels = rounded.levels.T.reshape(weight.shape)
                convs[node.name] = _Conv(node, weight, levels, rounded.scales)
                ends.add(end)
        elif node.op_type == "Add" and ends.issuperset(node.input):
            ends.add(end)
    return _FoundConvs(convs, ends)


def _output_shifts(
    model: Any, convs: Mapping[str, _Conv], images: npt.NDArray[Any]
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean error of each output channel by rounded weights, over images and positions."""
    from onnx import ModelProto, helper

    measured = ModelProto()
    measured.CopyFrom(model)
    for name, conv in convs.items():
        difference = conv.weight - conv.scales[:, None, None, None] * conv.levels
        set_initializer(measured, f"{name}/diff", difference)
        product = helper.make_node("Conv", [conv.node.input[0], f"{name}/diff"], [f"{name}/shifts"])
        product.attribute.extend(conv.node.attribute)
        mean = helper.make_node("GlobalAveragePool", [f"{name}/shifts"], [f"{name}/shift"])
        measured.graph.node.extend([product, mean])
    outputs = [f"{name}/shift" for name in convs]
    means = zip(*run_outputs(measured, outputs, images), strict=True)  # [B, O, 1, 1] of each batch
    return {
        name: np.concatenate(batches).mean(axis=(0, 2, 3), dtype=np.float32)
        for name, batches in zip(convs, means, strict=True)
    }


def _scale(low: float, high: float) -> float:
    """Step between levels of an activation, whose range is extended to contain 0."""
    return (max(high, 0.0) - min(low, 0.0)) / _STEPS or 1.0


def _activation_nodes(model: Any, x: str, low: float, high: float) -> list[Any]:
    """Q and DQ nodes of an activation."""
    scale = _scale(low, high)
    return quantizer_pair(model, x, x, scale, np.uint8(round(-min(low, 0.0) / scale)))


def _constant_nodes(
    model: Any, conv: _Conv, input_scale: float, shift: npt.NDArray[np.float32]
) -> list[Any]:
    """DQ nodes of a convolution's weight and corrected bias, which become its inputs."""
    from onnx import numpy_helper

    node = conv.node
    name = node.name
    output = f"{name}/weight"
    weight = weight_dequantizer(model, output, conv.levels, conv.scales, output=output)
    bias = shift.astype(np.float64)
    if len(node.input) > 2:
        bias += numpy_helper.to_array(initializers(model)[node.input[2]])
    steps = conv.scales * np.float32(input_scale)  # of the sum of products
    limits = np.iinfo(np.int32)
    levels = np.rint(bias / steps.astype(np.float64)).clip(limits.min, limits.max)
    output = f"{name}/bias"
    dequantized = weight_dequantizer(model, output, levels.astype(np.int32), steps, output=output)
    node.input[:] = [node.input[0], weight.output[0], dequantized.output[0]]
    return [weight, dequantized]
