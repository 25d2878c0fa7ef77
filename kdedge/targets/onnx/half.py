"""FP16: converts a float32 graph to one whose blocks compute in half precision.

TensorRT 11 has no precision flags: everything that is not FP16 in the file runs in float32. Here
the image encoder is FP16, with FP16 weights in the file. The head (from the projector on), inputs
and outputs are unchanged.

- LayerNormalization has FP16 inputs and outputs, like TensorRT's fused layer. By ONNX's definition
  (`stash_type` 1, the default) its mean and variance are float32, so squares cannot overflow.
  Casts around it would prevent the fusion.
- Softmax subtracts the row's largest value first, so its terms are in 0-1 and their sum is at most
  the number of tokens.
- A node whose tensors exceed `LIMIT` on the given images stays float32, as do other nodes that use
  the same tensor. In CLIPs, some channels of the residual stream are hundreds of times larger than
  the others.
- A node whose weights FP16 cannot represent stays float32.

ModelOpt's AutoCast is similar, but drops the file's metadata and the sharing of constants, and does
not take graphs with Q/DQ, which need the same conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import (
    drop_unused,
    extremes,
    head_nodes,
    initializers,
    load_graph,
    save_graph,
    set_initializer,
    set_nodes,
)

# Largest magnitude that may become FP16: a quarter of its range (65504), since other images may
# have larger values than the measured ones
LIMIT = 16384.0

# Relative error (root mean square) of rounded weights above which they stay float32. FP16 rounds
# to 3e-4 of a value; a larger error means that values are too small for it (below 6e-5).
MAX_WEIGHT_ERROR = 1e-3

_FLOAT = 1  # onnx.TensorProto.FLOAT
_HALF = 10  # onnx.TensorProto.FLOAT16

# The first three have float values in attributes, or read only a shape. On CPUs, ONNX Runtime's
# FP16 kernel of QuantizeLinear truncates instead of rounding, up to version 1.29:
# github.com/microsoft/onnxruntime/issues/18576.
_NEVER_HALF = frozenset({"Constant", "ConstantOfShape", "Shape", "QuantizeLinear"})


def to_fp16(onnx_path: Path, output: Path, *, images: npt.NDArray[Any]) -> None:
    """Writes the FP16 graph of a float32 graph, complete or not at all.

    Node names, metadata, opset and a dynamic batch are kept.

    Args:
        onnx_path: a float32 file of `builders.onnx.trace`.
        output: the file to write.
        images: [N, 3, S, S], as the graph takes them; real images, to find the tensors that are too
            large for FP16.

    Raises:
        DataError: the weights are too large for one file.
        MissingPackage: onnx or ONNX Runtime is not installed.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    convert(model, absolute_maxima(model, images))
    save_graph(model, output)


def absolute_maxima(model: Any, images: npt.NDArray[Any]) -> dict[str, float]:
    """Largest magnitude of each float32 tensor that a node computes, over all images."""
    types = _tensor_types(model)
    names: list[str] = []
    for node in model.graph.node:
        names += [name for name in node.output if types.get(name) == _FLOAT]
    ranges = extremes(model, names, images)
    return {name: max(-low, high) for name, (low, high) in ranges.items()}


def convert(model: Any, maxima: Mapping[str, float]) -> None:
    """Converts a float32 graph, which may have Q/DQ pairs, to FP16 in place.

    Args:
        model: the graph. With Q/DQ pairs, its opset must be 19 or later, for FP16 scales.
        maxima: largest magnitude by tensor name; other tensors are assumed to fit.

    Raises:
        DataError: the graph is not an image encoder.
    """
    del model.graph.value_info[:]
    types = _tensor_types(model)
    constants = _constants(model)
    in_float = head_nodes(model)
    for node in model.graph.node:
        if node.op_type in _NEVER_HALF or not _fits(node, constants, maxima):
            in_float.add(node.name)
    _add_casts(model, in_float, types)
    read = {name for node in model.graph.node for name in node.input}
    for name, values in constants.items():
        if _half_name(name) in read:
            set_initializer(model, _half_name(name), values.astype(np.float16))
    drop_unused(model)


def _half_name(name: str) -> str:
    return f"{name}.fp16"


def _constants(model: Any) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> values of the float32 constants."""
    from onnx import numpy_helper

    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in initializers(model).items()
        if tensor.data_type == _FLOAT
    }


def _fits(
    node: Any, constants: Mapping[str, npt.NDArray[np.float32]], maxima: Mapping[str, float]
) -> bool:
    """Whether FP16 can represent a node's constants, inputs and outputs."""
    if any(maxima.get(name, 0.0) > LIMIT for name in (*node.input, *node.output)):
        return False
    if node.op_type == "DequantizeLinear":
        largest = np.max(constants[node.input[1]]) * 128
        if largest > LIMIT:
            return False
    return all(_fits_half(constants[name]) for name in node.input if name in constants)


def _fits_half(values: npt.NDArray[np.float32]) -> bool:
    """Whether FP16 can represent these values."""
    if not np.all(np.abs(values) <= LIMIT):
        return False
    error = values.astype(np.float16).astype(np.float32) - values
    return bool(np.linalg.norm(error) <= MAX_WEIGHT_ERROR * np.linalg.norm(values))


def _add_casts(model: Any, in_float: set[str], types: Mapping[str, int]) -> None:
    """Converts each node's inputs to the node's precision, by casts where precisions differ."""
    constants = initializers(model)
    is_half: dict[str, bool] = {}
    nodes: list[Any] = []
    cast: dict[tuple[str, bool], str] = {}
    for node in list(model.graph.node):
        wants_half = node.name not in in_float
        for index, name in enumerate(node.input):
            if types.get(name) != _FLOAT or node.op_type == "Shape":
                continue
            if name in constants:
                # Only the first input of Resize may be FP16
                if wants_half and not (node.op_type == "Resize" and index > 0):
                    node.input[index] = _half_name(name)
            elif is_half.get(name, False) != wants_half:
                if (name, wants_half) not in cast:
                    cast[name, wants_half] = _add_cast(nodes, name, to_half=wants_half)
                node.input[index] = cast[name, wants_half]
        if wants_half and node.op_type == "Cast":
            (target,) = (attribute for attribute in node.attribute if attribute.name == "to")
            target.i = _HALF if target.i == _FLOAT else target.i
        is_half.update((name, wants_half) for name in node.output if types.get(name) == _FLOAT)
        nodes.append(node)
    set_nodes(model, nodes)


def _add_cast(nodes: list[Any], name: str, *, to_half: bool) -> str:
    """Appends a cast of a tensor and returns the name of its output."""
    import onnx

    output = f"{name}/fp16" if to_half else f"{name}/fp32"
    dtype = _HALF if to_half else _FLOAT
    nodes.append(onnx.helper.make_node("Cast", [name], [output], name=f"{output}/Cast", to=dtype))
    return output


def _tensor_types(model: Any) -> dict[str, int]:
    """Tensor name -> its element type, for all tensors of the graph."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
