"""Multiply-adds and parameters of an ONNX graph, counted on the deployed file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.targets.onnx.graph import load_graph

_PRODUCTS = frozenset({"MatMul", "MatMulInteger", "Gemm", "Conv", "ConvInteger"})
_WEIGHTS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8"})


def count(path: Path) -> dict[str, float | int]:
    """Counts `gmacs`, 1e9 multiply-adds per image, and `parameters`, the numbers in the file.

    Only matrix products and convolutions are counted, with those of attention, as in
    `torch.utils.flop_counter`, which gives operations, twice as many.

    Raises:
        DataError: the file is not valid ONNX, or a product's size is not fixed by the image size.
    """
    model = load_graph(path)
    import onnx

    names = onnx.TensorProto.DataType.Name
    weights = [t for t in model.graph.initializer if names(t.data_type) in _WEIGHTS]
    parameters = sum(math.prod(tensor.dims) for tensor in weights)
    return {"gmacs": _multiply_adds(path, model) / 1e9, "parameters": parameters}


def _multiply_adds(path: Path, model: Any) -> int:
    """Multiply-adds of one image."""
    import onnx

    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch.dim_value = batch.dim_value or 1  # the result does not depend on the number
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer} | {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    total = sum(_product(path, node, shapes) for node in products)
    return total // int(batch.dim_value)


def _product(path: Path, node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node: number of outputs times products per output."""
    first, second = (shapes.get(name, ()) for name in node.input[:2])
    output = shapes.get(node.output[0], ())
    transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
    if node.op_type.startswith("Conv"):
        summed = math.prod(second[1:])  # [D_out, D_in / groups, height, width]
    else:
        summed = first[0 if transposed else -1] if first else 0
    if not (output and summed and all(output)):
        raise DataError(
            f"{path}: the size of the node {node.name} ({node.op_type}) is not fixed by the size"
            " of an image.\n"
            "  Export the run again: kdedge export RUN --onnx"
        )
    return math.prod(output) * summed
