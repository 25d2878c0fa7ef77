"""FP8 (E4M3) for GPUs since Ada and Hopper: Q/DQ around the encoder's linear layers, the rest FP16.

One scale for each input and one for each weight, the largest magnitude over 448, the largest number
of E4M3 (Micikevicius et al., arXiv:2209.05433). Weights are stored in FP8. The first convolution,
attention's own products and the head are as in `half`. FP8's levels are finer near zero, so that
outliers cost little, and no smoothing is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import RecipeError
from kdedge.targets.onnx import half
from kdedge.targets.onnx.graph import (
    check_images,
    drop_unused,
    initializers,
    load_graph,
    save_graph,
    set_initializer,
    weight_matmuls,
)
from kdedge.targets.onnx.quantize import in_qdq_opset, keep_labels

HIGHEST = 448.0


def to_fp8(onnx_path: Path, output: Path, *, calibration: npt.NDArray[Any]) -> None:
    """Writes the FP8 graph, complete or not at all; opset 19.

    Args:
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images of the deployment.

    Raises:
        DataError: no images, images that do not fit the graph, or a broken file.
        RecipeError: the encoder has no linear layers.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    check_images(model, calibration, purpose="FP8 calibration")
    if not weight_matmuls(model):
        raise RecipeError(
            f"{onnx_path} has no linear layers on tokens, and only these are FP8.\n"
            "  Leave fp8 out, or export a ViT."
        )
    maxima = half.absolute_maxima(model, calibration)
    quantized = in_qdq_opset(model)
    _insert(quantized, maxima)
    half.convert(quantized, maxima)
    keep_labels(model, quantized)
    save_graph(quantized, output)


def scale_of(largest: float) -> npt.NDArray[np.float32]:
    """The scale that reaches a magnitude, rounded to FP16, as files store it; 0 counts as 1."""
    smallest = float(np.finfo(np.float16).smallest_normal)
    return np.asarray(max((largest or 1.0) / HIGHEST, smallest), np.float16).astype(np.float32)


def _insert(model: Any, maxima: dict[str, float]) -> None:
    """Adds Q/DQ at the inputs of linear layers, and DQ at weights that are stored in FP8."""
    import ml_dtypes
    from onnx import helper, numpy_helper

    constants = initializers(model)
    linear = {node.name for node in weight_matmuls(model)}
    zero = np.zeros((), dtype=ml_dtypes.float8_e4m3fn)
    set_initializer(model, "fp8/zero_point", zero)
    dequantized: dict[str, str] = {}
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name in linear:
            x, weight = node.input[:2]
            if x not in dequantized:
                set_initializer(model, f"{x}/scale", scale_of(maxima[x]))
                parts, q, dq = [f"{x}/scale", "fp8/zero_point"], f"{x}/QuantizeLinear", f"{x}/DQ"
                nodes += [
                    helper.make_node("QuantizeLinear", [x, *parts], [q], name=q),
                    helper.make_node("DequantizeLinear", [q, *parts], [dq], name=dq),
                ]
                dequantized[x] = dq
            values = numpy_helper.to_array(constants[weight])
            scale = scale_of(float(np.abs(values).max()))
            scaled = (values / scale).clip(-HIGHEST, HIGHEST).astype(ml_dtypes.float8_e4m3fn)
            parts = [f"{node.name}/fp8", f"{node.name}/scale"]
            set_initializer(model, parts[0], scaled)
            set_initializer(model, parts[1], scale)
            stored = f"{node.name}/weight"
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [*parts, "fp8/zero_point"], [stored], name=stored
                )
            )
            node.input[0], node.input[1] = dequantized[x], stored
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
