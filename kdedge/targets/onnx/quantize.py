"""INT8: the encoder's linear layers and convolutions in eight bits, for TensorRT and for CPUs.

The search has moved range from activations into weights of both (`quantization.search`). Neither
quantizes the first convolution, depthwise ones (`int8_convs`), attention's own two products,
softmax, normalization and the head. These choices come from photos100, with real photos and a small
CLIP's ViT (`benchmarks/README.md`):

- Q/DQ on attention's products, on the residual branches and on the inputs of LayerNorm, as ModelOpt
  places it by default, costs four more points of agreement; FP16 attention is one fused kernel;
- ranges by the largest value give the same agreement as those by entropy;
- on CPUs, ranges of linear layers from each call (dynamic) give better agreement and run faster
  than fixed ones. ONNX Runtime's convolutions of bytes are fast with fixed ranges alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.quantization.fake import QuantizedLayer
from kdedge.targets.onnx import half
from kdedge.targets.onnx.graph import (
    consumers,
    drop_unused,
    extremes,
    initializers,
    load_graph,
    quantizer_pair,
    save_graph,
    set_initializer,
    weight_matmuls,
    wide_convs,
)
from kdedge.targets.onnx.insert import insert_qdq
from kdedge.targets.protocol import CPU_WEIGHT_LEVELS

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
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images of the deployment.
        layers: what is quantized, by name as `insert.quantizable` has them; others are FP16.

    Raises:
        DataError: the weights are too large for one file.
        ResourceError: the disk is full.
    """
    model = load_graph(onnx_path)
    maxima = half.absolute_maxima(model, calibration)
    quantized = in_qdq_opset(model)
    insert_qdq(quantized, layers)
    half.convert(quantized, maxima)
    keep_labels(model, quantized)
    save_graph(quantized, output)


def to_int8_cpu(onnx_path: Path, output: Path, *, calibration: npt.NDArray[Any]) -> None:
    """Writes the INT8 graph for ONNX Runtime on CPUs, complete or not at all.

    Linear layers multiply bytes: 7-bit weights with one scale per output channel, and activations
    with a scale computed from each batch. The rest is float32. Without linear layers, as in a CNN,
    convolutions multiply bytes, with fixed ranges (`int8_convs`). Node names, metadata and opset
    are kept.

    Args:
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images, for a CNN's ranges.

    Raises:
        DataError: the weights are too large for one file.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    if weight_matmuls(model):
        _make_dynamic(model)
    else:
        quantize_convs(model, calibration, CPU_WEIGHT_LEVELS)
    drop_unused(model)
    save_graph(model, output)


def in_qdq_opset(model: Any) -> Any:
    """A copy in the opset whose Q/DQ take FP16 scales, with all names."""
    from onnx import version_converter

    converted = version_converter.convert_version(model, QDQ_OPSET)
    drop_unused(converted)
    return converted


def _make_dynamic(model: Any) -> None:
    """Replaces the blocks' linear products with products of bytes, in the form that ORT fuses."""
    from onnx import helper, numpy_helper

    linear, constants = {node.name for node in weight_matmuls(model)}, initializers(model)
    quantized: set[str] = set()
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name not in linear:
            nodes.append(node)
            continue
        (x, weight), name = node.input, node.name
        q, scale, zero = (f"{x}/{part}" for part in ("int8", "scale", "zero_point"))
        if x not in quantized:
            quantized.add(x)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [q, scale, zero],
                                          name=f"{x}/DynamicQuantizeLinear"))  # fmt: skip
        values, scales = _quantize(numpy_helper.to_array(constants[weight]), CPU_WEIGHT_LEVELS)
        set_initializer(model, f"{name}/int8", values)
        set_initializer(model, f"{name}/scale", scales)
        total, product = f"{name}/sum", f"{name}/scales"
        nodes += [
            helper.make_node("MatMulInteger", [q, f"{name}/int8", zero], [total], name=name),
            helper.make_node("Cast", [total], [f"{name}/float"], name=f"{name}/Cast", to=1),
            helper.make_node("Mul", [scale, f"{name}/scale"], [product], name=f"{name}/Mul"),
            helper.make_node("Mul", [f"{name}/float", product], node.output, name=f"{name}/Mul_2"),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantize(
    weight: npt.NDArray[Any], n_levels: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric integers [K, N] of a weight [K, N], and a scale for each column, [N]."""
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest, 1.0) / n_levels
    values = np.rint(weight / scales).clip(-n_levels, n_levels).astype(np.int8)
    return values, scales.astype(np.float32)


def keep_labels(source: Any, model: Any) -> None:
    """Copies names, metadata and version labels from the graph that it was made from."""
    model.ir_version = source.ir_version
    model.graph.name = source.graph.name
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    for value, original in zip(
        (*model.graph.input, *model.graph.output),
        (*source.graph.input, *source.graph.output),
        strict=True,
    ):
        value.CopyFrom(original)


_STEPS = 255  # between the 256 values of an unsigned byte


def quantize_convs(model: Any, calibration: npt.NDArray[Any], n_levels: int) -> None:
    """Gives wide convolutions Q/DQ.

    Activations are unsigned bytes with one range each; weights have one scale per output channel.

    Args:
        model: a float32 graph; changed in place.
        calibration: [N, 3, S, S], real images, whose smallest and largest values are the ranges.
        n_levels: weights are -n_levels to n_levels.
    """
    wide = wide_convs(model)
    convs, reads = {node.name for node in wide}, {node.input[0] for node in wide}
    ends = {_end(model, node) for node in wide}
    ranges = extremes(model, sorted(reads | ends), calibration)
    nodes: list[Any] = []
    dequantized: dict[str, str] = {}
    for node in list(model.graph.node):
        is_conv = node.name in convs
        if is_conv:
            x = node.input[0]
            if x not in dequantized:
                nodes += _activation(model, x, *ranges[x])
                dequantized[x] = nodes[-1].output[0]
            nodes += _constants(model, node, _scale(*ranges[x]), n_levels)
        for index, x in enumerate(node.input):
            if x in ends or (is_conv and index == 0):  # ends are bytes for every reader
                node.input[index] = dequantized[x]
        nodes.append(node)
        for output in ends.intersection(node.output):
            nodes += _activation(model, output, *ranges[output])
            dequantized[output] = nodes[-1].output[0]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _end(model: Any, node: Any) -> str:
    """The tensor that is quantized after a convolution."""
    readers = consumers(model).get(node.output[0], [])
    is_relu = len(readers) == 1 and readers[0].op_type == "Relu"
    return str(readers[0].output[0] if is_relu else node.output[0])


def _scale(low: float, high: float) -> float:
    """Step of an activation, whose range has to have 0."""
    return (max(high, 0.0) - min(low, 0.0)) / _STEPS or 1.0


def _activation(model: Any, x: str, low: float, high: float) -> list[Any]:
    """Q and DQ of an activation."""
    scale = _scale(low, high)
    return quantizer_pair(model, x, x, scale, np.uint8(round(-min(low, 0.0) / scale)))


def _constants(model: Any, node: Any, input_scale: float, n_levels: int) -> list[Any]:
    """DQ of a convolution's weight and bias; the node reads them."""
    from onnx import numpy_helper

    constants, name = initializers(model), node.name
    weight = numpy_helper.to_array(constants[node.input[1]])
    largest = np.abs(weight).max(axis=(1, 2, 3))
    scales = (np.where(largest > 0, largest, 1.0) / n_levels).astype(np.float32)
    levels = np.rint(weight / scales[:, None, None, None]).clip(-n_levels, n_levels)
    nodes = [_dequantizer(model, f"{name}/weight", levels.astype(np.int8), scales)]
    if len(node.input) > 2:
        steps = scales * np.float32(input_scale)  # those of the sum of products
        bias = np.rint(numpy_helper.to_array(constants[node.input[2]]) / steps.astype(np.float64))
        limits = np.iinfo(np.int32)
        bias = bias.clip(limits.min, limits.max).astype(np.int32)
        nodes.append(_dequantizer(model, f"{name}/bias", bias, steps))
        node.input[2] = nodes[-1].output[0]
    node.input[1] = nodes[0].output[0]
    return nodes


def _dequantizer(
    model: Any, name: str, levels: npt.NDArray[Any], scales: npt.NDArray[np.float32]
) -> Any:
    """DQ of a constant with one scale for each output channel."""
    from onnx import helper

    parts = [f"{name}/levels", f"{name}/scale", f"{name}/zero_point"]
    set_initializer(model, parts[0], levels)
    set_initializer(model, parts[1], scales)
    set_initializer(model, parts[2], np.zeros(len(scales), levels.dtype))
    return helper.make_node("DequantizeLinear", parts, [name], name=name, axis=0)
