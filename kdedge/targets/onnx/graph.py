"""Reads, runs, changes and writes the ONNX graphs of `trace.write_onnx`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError
from kdedge.files import write_atomic
from kdedge.runtime.backend import padded_batches
from kdedge.targets.base import HEAD_LAYERS

# Maximum size of a protobuf message (2 GiB), minus room for the graph itself
MAX_WEIGHT_BYTES = (1 << 31) - (1 << 24)

# Images per run if the graph takes any number of images
BATCH = 8

# Fewest input channels (per group) of a convolution in INT8. With fewer, as in the first and in
# depthwise convolutions, INT8 is slower on tensor cores and loses more accuracy (NVIDIA
# ModelOpt).
MIN_CHANNELS = 16


def load_graph(path: Path, *, max_bytes: int = MAX_WEIGHT_BYTES) -> Any:
    """Reads a file of `kdedge export`, with its external data, as an `onnx.ModelProto`.

    Args:
        path: the file.
        max_bytes: maximum size of the weights in one file.

    Raises:
        DataError: the file has more than `max_bytes` of weights.
    """
    import onnx

    model = onnx.load(path)
    n_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if n_bytes > max_bytes:
        raise DataError(
            f"{path} has {n_bytes / 1e9:.2f} GB of weights, but one ONNX file can have at most"
            " 2.1 GB.\n"
            "  Export a smaller model, or only float32."
        )
    return model


def save_graph(model: Any, output: Path) -> None:
    """Checks a graph and writes it as one file, complete or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    import onnx

    onnx.checker.check_model(model, full_check=True)
    write_atomic(output, model.SerializeToString())


def initializers(model: Any) -> dict[str, Any]:
    """Name -> tensor of every constant."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def consumers(model: Any) -> dict[str, list[Any]]:
    """Tensor name -> nodes that read it."""
    nodes_by_input: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            nodes_by_input.setdefault(name, []).append(node)
    return nodes_by_input


def set_initializer(model: Any, name: str, values: npt.NDArray[Any]) -> None:
    """Adds a constant, or replaces the values of an existing constant."""
    from onnx import numpy_helper

    tensor = numpy_helper.from_array(np.asarray(values), name)
    for old in model.graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def set_nodes(model: Any, nodes: list[Any]) -> None:
    """Replaces all nodes; the new list may contain old nodes of the graph."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unused(model: Any) -> None:
    """Drops constants that no node reads, and shape annotations, which may be outdated."""
    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    del model.graph.value_info[:]


def head_nodes(model: Any) -> set[str]:
    """Names of the head's nodes: all nodes from the projector to the logits."""
    reached: set[str] = set()
    head = set()
    for node in model.graph.node:  # in topological order, as ONNX demands
        if node.name.startswith(HEAD_LAYERS) or reached.intersection(node.input):
            reached.update(node.output)
            head.add(node.name)
    return head


def weight_matmuls(model: Any) -> list[Any]:
    """The encoder's MatMul nodes whose second factor is a constant."""
    head = head_nodes(model)
    constants = initializers(model)
    matmuls = [node for node in model.graph.node if node.op_type == "MatMul"]
    return [node for node in matmuls if node.input[1] in constants and node.name not in head]


def wide_convs(model: Any) -> list[Any]:
    """The encoder's Conv nodes that sum over at least `MIN_CHANNELS` channels."""
    constants = initializers(model)
    wide = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and weight.dims[1] >= MIN_CHANNELS:
            wide.append(node)
    return wide


def batches(model: Any, images: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Splits images into batches; copies of the first images fill the last fixed batch."""
    (value,) = model.graph.input
    fixed: int = value.type.tensor_type.shape.dim[0].dim_value
    return padded_batches(images, fixed, fixed or BATCH)


def run_outputs(
    model: Any, names: list[str], images: npt.NDArray[Any]
) -> Iterator[list[npt.NDArray[Any]]]:
    """Runs the graph on images on the CPU, and yields some of its tensors, batch by batch.

    Args:
        model: the graph; not changed.
        names: names of float tensors or outputs.
        images: images as the graph takes them.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    outputs = list(model.graph.output)
    try:
        del model.graph.output[:]
        for name in names:
            model.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        data = model.SerializeToString()
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (value,) = model.graph.input
    for batch in batches(model, images):
        yield session.run(names, {value.name: batch})


def extremes(
    model: Any, names: Sequence[str], images: npt.NDArray[Any]
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each float tensor, over all images."""
    import onnx

    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    for name in names:
        for kind in ("Min", "Max"):
            node = onnx.helper.make_node(f"Reduce{kind}", [name], [f"{name}/{kind}"], keepdims=0)
            measured.graph.node.append(node)
    outputs = [f"{name}/Min" for name in names] + [f"{name}/Max" for name in names]
    values = np.array(list(run_outputs(measured, outputs, images)))  # [batches, 2 * names]
    lowest = values[:, : len(names)].min(axis=0).tolist()
    highest = values[:, len(names) :].max(axis=0).tolist()
    return dict(zip(names, zip(lowest, highest, strict=True), strict=True))


def quantizer_pair(model: Any, x: str, name: str, scale: float, zero_point: Any) -> list[Any]:
    """QuantizeLinear and DequantizeLinear of an activation.

    Args:
        model: the graph, to which the constants are added.
        x: name of the activation.
        name: prefix of the names of both nodes.
        scale: step between two levels.
        zero_point: np.int8 or np.uint8, which is also the type of the levels.
    """
    from onnx import helper

    parts = [f"{name}/scale", f"{name}/zero_point"]
    set_initializer(model, parts[0], np.float32(scale))
    set_initializer(model, parts[1], zero_point)
    q, dq = f"{name}/QuantizeLinear", f"{name}/DequantizeLinear"
    return [
        helper.make_node("QuantizeLinear", [x, *parts], [q], name=q),
        helper.make_node("DequantizeLinear", [q, *parts], [dq], name=dq),
    ]


def weight_dequantizer(
    model: Any,
    name: str,
    levels: npt.NDArray[Any],
    scales: npt.NDArray[np.float32],
    *,
    output: str,
    axis: int = 0,
) -> Any:
    """DequantizeLinear of a constant with one scale for each output channel.

    Args:
        model: the graph, to which the constants are added.
        name: prefix of the names of the constants.
        levels: int8 for weights, int32 for biases.
        scales: a scale for each channel.
        output: name of the node and its output.
        axis: the channels' axis.
    """
    from onnx import helper

    parts = [f"{name}/levels", f"{name}/scale", f"{name}/zero_point"]
    values = (np.ascontiguousarray(levels), scales, np.zeros(len(scales), levels.dtype))
    for part, value in zip(parts, values, strict=True):
        set_initializer(model, part, value)
    return helper.make_node("DequantizeLinear", parts, [output], name=output, axis=axis)
