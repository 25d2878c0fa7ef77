"""SmoothQuant: moves range from activations into weights; float results do not change.

Xiao et al., arXiv:2211.10438, equation 4. Large transformers have channels that are far larger than
the others, but a tensor has one scale for all channels. photos100's small CLIP has no such
channels: it gains 0.2 points of agreement (`benchmarks/int8_quantizers.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.targets.onnx.graph import (
    consumers,
    drop_unused,
    initializers,
    run_outputs,
    set_initializer,
    weight_matmuls,
)

SMOOTHING = 0.5
"""Exponent of the activations' range (alpha): SmoothQuant's default. On photos100, 0.3 to 0.8 give
the same agreement within 0.6 points."""


def smooth(model: Any, images: npt.NDArray[Any], *, strength: float = SMOOTHING) -> None:
    """Divides each LayerNorm's output by channel, and multiplies the following weights.

    Exact up to float32 rounding; see the module's docstring.

    Args:
        model: changed in place.
        images: images as the graph takes them.
        strength: alpha in equation 4; 0 equalizes the weights' ranges, 1 the activations'.
    """
    from onnx import numpy_helper

    pairs = norm_readers(model)
    if not pairs:
        return
    norms = [norm for norm, _ in pairs]
    names = [node.output[0] for node in norms]
    highest: list[Any] = [0.0] * len(names)
    for values in run_outputs(model, names, images):
        largest = (np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for value in values)
        highest = [np.maximum(old, new) for old, new in zip(highest, largest, strict=True)]
    constants = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in initializers(model).items()
        if tensor.data_type == 1
    }
    for (norm, linears), activation in zip(pairs, highest, strict=True):
        weight = np.max([np.abs(constants[node.input[1]]).max(axis=1) for node in linears], axis=0)
        factor = activation.clip(1e-5) ** strength / weight.clip(1e-5) ** (1 - strength)
        for index in range(1, len(norm.input)):  # weight and bias
            _set_own(model, norm, index, constants[norm.input[index]] / factor)
        for node in linears:
            _set_own(model, node, 1, constants[node.input[1]] * factor[:, None])
    drop_unused(model)


def norm_readers(model: Any) -> list[tuple[Any, list[Any]]]:
    """Each LayerNorm whose output only linear layers read, and the nodes of these layers."""
    linear = {node.name for node in weight_matmuls(model)}
    read_by = consumers(model)
    found = []
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization":
            continue
        readers = read_by[norm.output[0]]
        cuts = [node for node in readers if node.op_type == "Slice"]  # only the class token
        readers = [node for node in readers if node.op_type != "Slice"]
        readers += [node for cut in cuts for node in read_by[cut.output[0]]]
        if readers and all(node.name in linear for node in readers):
            found.append((norm, readers))
    return found


def _set_own(model: Any, node: Any, index: int, values: npt.NDArray[Any]) -> None:
    """Gives a node its own constant, as nodes may share constants of equal values."""
    name = f"{node.name}/{index}"
    set_initializer(model, name, values.astype(np.float32))
    node.input[index] = name
