"""FP16: a float32 graph becomes one whose blocks compute in half precision.

TensorRT 11 has no precision flags: what is not FP16 in the file runs in float32. Here the patch
convolution and the blocks are FP16, with FP16 weights in the file; the head (all after the last
LayerNormalization) and the graph's boundary stay as they are.

- LayerNormalization takes and gives FP16, as TensorRT's fused layer does; by ONNX's definition
  (`stash_type` 1, the default) its mean and variance are float32, so that squares cannot overflow.
  Casts around it would only keep it from being fused.
- Softmax subtracts the row's largest value first: its terms are in 0-1, their sum at most the
  number of tokens.
- A node whose tensors leave `LIMIT` on the images that are given stays float32, and so do the
  nodes around it that see the same tensor: CLIPs have channels of the residual stream that are
  hundreds of times larger than the others.
- A node with weights that FP16 cannot hold stays float32.

ModelOpt's AutoCast does a similar job; it drops the file's metadata and the sharing of constants,
and does not take graphs with Q/DQ, which need the same treatment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import (
    check_images,
    drop_unused,
    head_nodes,
    initializers,
    load_graph,
    run_outputs,
    save_graph,
    set_initializer,
)

LIMIT = 16384.0
"""Largest magnitude that is given to FP16: a quarter of its range (65504), since other images than
the measured ones come."""

MAX_WEIGHT_ERROR = 1e-3
"""Relative error (root mean square) of rounded weights above which they stay float32. FP16 rounds
to 3e-4 of a value; where it is more, the values are too small for it (below 6e-5)."""

_FLOAT, _HALF = 1, 10  # onnx.TensorProto.FLOAT and FLOAT16

# The first three hold float values in attributes, or only look at a shape. Of QuantizeLinear, ONNX
# Runtime's FP16 kernel for CPUs cuts off where it should round, up to 1.29:
# github.com/microsoft/onnxruntime/issues/18576.
_NEVER_HALF = frozenset({"Constant", "ConstantOfShape", "Shape", "QuantizeLinear"})


def to_fp16(onnx_path: Path, output: Path, *, images: npt.NDArray[Any]) -> None:
    """Writes the FP16 graph of a float32 graph, whole or not at all.

    Node names, metadata, opset and a dynamic batch are kept.

    Args:
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        images: [N, 3, S, S], as the graph takes them; real ones, to see which tensors are too large
            for FP16.

    Raises:
        DataError: the file is broken or no image encoder, or there are no images that fit it.
        MissingPackage: onnx or ONNX Runtime is not installed.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    check_images(model, images, purpose="choosing what can be FP16")
    convert(model, absolute_maxima(model, images))
    save_graph(model, output)


def absolute_maxima(model: Any, images: npt.NDArray[Any]) -> dict[str, float]:
    """Largest magnitude of each float32 tensor that a node gives, over the images."""
    import onnx

    types = _tensor_types(model)
    names = [name for node in model.graph.node for name in node.output if types.get(name) == _FLOAT]
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    for name in names:
        measured.graph.node.add(op_type="Abs", input=[name], output=[f"{name}/abs"])
        node = onnx.helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0)
        measured.graph.node.append(node)
    highest = np.zeros(len(names))
    for values in run_outputs(measured, [f"{name}/max" for name in names], images):
        highest = np.maximum(highest, np.asarray(values, dtype=np.float64))
    return dict(zip(names, highest.tolist(), strict=True))


def convert(model: Any, maxima: Mapping[str, float]) -> None:
    """Turns a float32 graph, which may hold Q/DQ pairs, into FP16 in place.

    Args:
        model: its opset is 19 or more where it holds Q/DQ pairs, whose scales FP16 can hold.
        maxima: largest magnitude by tensor name; tensors that are not named are trusted.

    Raises:
        DataError: the graph is no image encoder.
    """
    del model.graph.value_info[:]
    types, constants = _tensor_types(model), _constants(model)
    in_float = head_nodes(model)
    for node in model.graph.node:
        if node.op_type in _NEVER_HALF or not _fits(node, constants, maxima):
            in_float.add(node.name)
    _connect(model, in_float, types)
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
    """Whether FP16 holds a node's constants and all that it reads and gives."""
    if any(maxima.get(name, 0.0) > LIMIT for name in (*node.input, *node.output)):
        return False
    if node.op_type == "DequantizeLinear" and np.max(constants[node.input[1]]) * 128 > LIMIT:
        return False
    return all(_fits_half(constants[name]) for name in node.input if name in constants)


def _fits_half(values: npt.NDArray[np.float32]) -> bool:
    """Whether FP16 holds these values."""
    if not np.all(np.abs(values) <= LIMIT):
        return False
    lost = values.astype(np.float16).astype(np.float32) - values
    return bool(np.linalg.norm(lost) <= MAX_WEIGHT_ERROR * np.linalg.norm(values))


def _connect(model: Any, in_float: set[str], types: Mapping[str, int]) -> None:
    """Gives each node its inputs in its own precision, by casts where the two sides differ."""
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
                if wants_half:
                    node.input[index] = _half_name(name)
            elif is_half.get(name, False) != wants_half:
                if (name, wants_half) not in cast:
                    cast[name, wants_half] = _add_cast(nodes, name, to_half=wants_half)
                node.input[index] = cast[name, wants_half]
        if wants_half and node.op_type == "Cast":
            (to,) = (attribute for attribute in node.attribute if attribute.name == "to")
            to.i = _HALF if to.i == _FLOAT else to.i
        is_half.update((name, wants_half) for name in node.output if types.get(name) == _FLOAT)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _add_cast(nodes: list[Any], name: str, *, to_half: bool) -> str:
    """Appends a cast of a tensor and gives its output."""
    import onnx

    output = f"{name}/{'fp16' if to_half else 'fp32'}"
    to = _HALF if to_half else _FLOAT
    nodes.append(onnx.helper.make_node("Cast", [name], [output], name=f"{output}/Cast", to=to))
    return output


def _tensor_types(model: Any) -> dict[str, int]:
    """Tensor name -> its element type, for all tensors of the graph."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
