"""INT8 convolutions for CPUs: products of bytes, with fixed ranges.

Only convolutions that sum over enough channels are quantized (`graph.wide_convs`). ONNX Runtime
computes one in bytes if its input, weight and bias come from DQ, and its output goes to Q. So each
gets Q/DQ after its output, too, or after the ReLU that follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import (
    consumers,
    initializers,
    run_outputs,
    set_initializer,
    wide_convs,
)

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
    ranges = _ranges(model, sorted(reads | ends), calibration)
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


def _ranges(
    model: Any, names: Iterable[str], images: npt.NDArray[Any]
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of tensors over the images."""
    import onnx

    names = list(names)
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    for name in names:
        for kind in ("Min", "Max"):
            node = onnx.helper.make_node(f"Reduce{kind}", [name], [f"{name}/{kind}"], keepdims=0)
            measured.graph.node.append(node)
    outputs = [f"{name}/{kind}" for kind in ("Min", "Max") for name in names]
    values = np.array(list(run_outputs(measured, outputs, images)))  # [batches, 2 * names]
    lows, highs = np.split(values, 2, axis=1)
    return dict(
        zip(
            names,
            zip(lows.min(axis=0).tolist(), highs.max(axis=0).tolist(), strict=True),
            strict=True,
        )
    )


def _scale(low: float, high: float) -> float:
    """Step of an activation, whose range has to have 0."""
    return (max(high, 0.0) - min(low, 0.0)) / _STEPS or 1.0


def _activation(model: Any, x: str, low: float, high: float) -> list[Any]:
    """Q and DQ of an activation."""
    from onnx import helper

    scale = _scale(low, high)
    parts = [f"{x}/scale", f"{x}/zero_point"]
    set_initializer(model, parts[0], np.float32(scale))
    set_initializer(model, parts[1], np.uint8(round(-min(low, 0.0) / scale)))
    q, dq = f"{x}/QuantizeLinear", f"{x}/DequantizeLinear"
    return [
        helper.make_node("QuantizeLinear", [x, *parts], [q], name=q),
        helper.make_node("DequantizeLinear", [q, *parts], [dq], name=dq),
    ]


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
