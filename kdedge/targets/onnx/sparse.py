"""2:4 zeros in an ONNX file: which layers have them, as TensorRT looks for them.

Of each four weights along a layer's input at least two are zero: the rows of a MatMul's weight, the
input channels of a convolution's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import GateError
from kdedge.targets.onnx.graph import initializers, load_graph
from kdedge.targets.onnx.insert import layer_of

_INPUT_AXIS = {"MatMul": 0, "MatMulInteger": 0, "Conv": 1, "ConvInteger": 1}


def sparse_layers(path: Path) -> set[str]:
    """Names of a file's linear layers and convolutions whose groups of four all have two zeros.

    Args:
        path: a file in any precision; INT8 weights count as they are stored.

    Raises:
        DataError: the file is not valid ONNX.
    """
    from onnx import numpy_helper

    model = load_graph(path)
    constants = initializers(model)
    dequantized = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    found: set[str] = set()
    for node in model.graph.node:
        axis = _INPUT_AXIS.get(node.op_type)
        if axis is None:
            continue
        tensor = constants.get(dequantized.get(node.input[1], node.input[1]))
        if tensor is not None and _is_sparse(numpy_helper.to_array(tensor), axis):
            found.add(layer_of(node))
    return found


def check_sparse(path: Path, layers: Collection[str]) -> None:
    """Checks that layers have their zeros in a written file.

    Args:
        path: the file.
        layers: names of the modules that the file's nodes compute.

    Raises:
        GateError: one of them has not; the message names the first.
    """
    missing = sorted(set(layers) - sparse_layers(path))
    if missing:
        raise GateError(
            f"{path.name}: {len(missing)} of {len(layers)} sparse layers have groups of four"
            f" weights with more than two non-zeros, first {missing[0]}.\n"
            "  This is a mistake of the conversion: export without this precision, and report it."
        )


def _is_sparse(weight: npt.NDArray[Any], axis: int) -> bool:
    if weight.ndim < 2 or weight.shape[axis] % 4:
        return False
    groups = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(groups, axis=1) <= 2).all())
