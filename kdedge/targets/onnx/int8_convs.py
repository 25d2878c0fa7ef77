"""INT8 convolutions: explicit Q/DQ for TensorRT, products of bytes for CPUs.

Only convolutions that sum over enough channels are quantized (`graph.wide_convs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import initializers, set_initializer, wide_convs


def add_conv_qdq(model: Any, maxima: Mapping[str, float]) -> None:
    """Adds Q/DQ at the input (one scale) and DQ at INT8 weights (one scale per output channel).

    Args:
        model: changed in place; opset 19 or later.
        maxima: largest magnitude of each tensor over the calibration images, which INT8 spans.
    """
    from onnx import helper, numpy_helper

    convs, constants = {node.name for node in wide_convs(model)}, initializers(model)
    dequantized: dict[str, str] = {}
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name in convs:
            x, weight, name = node.input[0], node.input[1], node.name
            if x not in dequantized:
                scale = _round_scale(np.asarray(maxima[x] / 127))
                nodes += _activation_qdq(model, x, f"{x}/conv", scale)
                dequantized[x] = nodes[-1].output[0]
            values = numpy_helper.to_array(constants[weight])
            scales = _round_scale(np.abs(values).max(axis=(1, 2, 3)) / 127)
            parts = [f"{name}/int8", f"{name}/scale"]
            set_initializer(model, parts[0], _to_bytes(values, scales, 127))
            set_initializer(model, parts[1], scales)
            output = f"{name}/weight"
            nodes.append(helper.make_node("DequantizeLinear", parts, [output], name=output, axis=0))
            node.input[0], node.input[1] = dequantized[x], output
        nodes.append(node)
    _set_nodes(model, nodes)


def _activation_qdq(model: Any, x: str, name: str, scale: npt.NDArray[Any]) -> list[Any]:
    """Q and DQ of an activation, with the zero point 0."""
    from onnx import helper

    parts = [f"{name}/scale", f"{name}/zero_point"]
    set_initializer(model, parts[0], scale)
    set_initializer(model, parts[1], np.zeros((), dtype=np.int8))
    q, dq = f"{name}/QuantizeLinear", f"{name}/DequantizeLinear"
    return [
        helper.make_node("QuantizeLinear", [x, *parts], [q], name=q),
        helper.make_node("DequantizeLinear", [q, *parts], [dq], name=dq),
    ]


def make_convs_dynamic(model: Any, n_levels: int) -> None:
    """Replaces wide convolutions with products of bytes; ranges of inputs come from each batch.

    Args:
        model: changed in place.
        n_levels: weights are -n_levels to n_levels.
    """
    from onnx import helper, numpy_helper

    convs, constants = {node.name for node in wide_convs(model)}, initializers(model)
    made = {name for node in model.graph.node for name in node.output}
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name not in convs:
            nodes.append(node)
            continue
        (x, weight, *bias), name = node.input, node.name
        q, scale, zero = (f"{x}/{part}" for part in ("int8", "scale", "zero_point"))
        if q not in made:
            made.add(q)
            nodes.append(
                helper.make_node(
                    "DynamicQuantizeLinear",
                    [x],
                    [q, scale, zero],
                    name=f"{x}/DynamicQuantizeLinear",
                )
            )
        values = numpy_helper.to_array(constants[weight])
        largest = np.abs(values).max(axis=(1, 2, 3))
        scales = (np.where(largest > 0, largest, 1.0) / n_levels).astype(np.float32)
        set_initializer(model, f"{name}/int8", _to_bytes(values, scales, n_levels))
        set_initializer(model, f"{name}/scale", scales[:, None, None])
        conv = helper.make_node(
            "ConvInteger", [q, f"{name}/int8", zero], [f"{name}/sum"], name=name
        )
        conv.attribute.extend(node.attribute)
        product, total = f"{name}/scales", f"{name}/product"
        nodes += [
            conv,
            helper.make_node("Cast", [f"{name}/sum"], [f"{name}/float"], name=f"{name}/Cast", to=1),
            helper.make_node("Mul", [scale, f"{name}/scale"], [product], name=f"{name}/Mul"),
        ]
        output = [total] if bias else node.output
        nodes.append(
            helper.make_node("Mul", [f"{name}/float", product], output, name=f"{name}/Mul_2")
        )
        if bias:
            shift = numpy_helper.to_array(constants[bias[0]])[:, None, None]
            set_initializer(model, f"{name}/bias", shift)
            nodes.append(
                helper.make_node("Add", [total, f"{name}/bias"], node.output, name=f"{name}/Add")
            )
    _set_nodes(model, nodes)


def _round_scale(scale: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rounds scales to FP16, as they are stored so."""
    smallest = np.finfo(np.float16).smallest_subnormal
    return np.asarray(np.maximum(scale.astype(np.float16), smallest), dtype=np.float32)


def _to_bytes(
    weight: npt.NDArray[Any], scales: npt.NDArray[Any], n_levels: int
) -> npt.NDArray[np.int8]:
    """Symmetric integers of a weight [D_out, D_in, H, W] with one scale per output channel."""
    steps = np.rint(weight / scales[:, None, None, None])
    return np.asarray(steps.clip(-n_levels, n_levels), dtype=np.int8)


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
