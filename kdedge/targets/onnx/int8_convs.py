"""INT8 convolutions for CPUs: products of bytes.

Only convolutions that sum over enough channels are quantized (`graph.wide_convs`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import initializers, set_initializer, wide_convs


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


def _to_bytes(
    weight: npt.NDArray[Any], scales: npt.NDArray[Any], n_levels: int
) -> npt.NDArray[np.int8]:
    """Symmetric integers of a weight [D_out, D_in, H, W] with one scale per output channel."""
    steps = np.rint(weight / scales[:, None, None, None])
    return np.asarray(steps.clip(-n_levels, n_levels), dtype=np.int8)


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
