"""INT8: the encoder's linear layers and convolutions in eight bits, for TensorRT and for CPUs.

The search has moved range from activations into weights of both (`quantization.search`). Neither
quantizes the first convolution, depthwise ones (`int8_convs`), attention's own two products,
softmax, normalization and the head. These choices come from photos100, with real photos and a small
CLIP's ViT (`benchmarks/README.md`):

- Q/DQ on attention's products, on the residual branches and on the inputs of LayerNorm, as ModelOpt
  places it by default, costs four more points of agreement; FP16 attention is one fused kernel;
- ranges by the largest value give the same agreement as those by entropy;
- on CPUs, ranges of linear layers from each call (dynamic) give better agreement and run faster
  than fixed ones. ONNX Runtime's convolutions of bytes are fast with fixed ranges alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.quantization.fake import QuantizedLayer
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
from kdedge.targets.onnx.insert import insert_qdq
from kdedge.targets.onnx.int8_convs import quantize_convs
from kdedge.targets.protocol import CPU_WEIGHT_LEVELS

QDQ_OPSET = 19


def to_int8(
    onnx_path: Path,
    output: Path,
    *,
    calibration: npt.NDArray[Any],
    layers: Mapping[str, QuantizedLayer],
) -> None:
    """Writes the INT8 graph for TensorRT, complete or not at all.

    Explicit symmetric Q/DQ (opset 19): activations per tensor, weights per output channel and
    stored as INT8. Everything else is FP16 as in `half`. Node names and metadata are kept.

    Args:
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images of the deployment.
        layers: what is quantized, by name as `insert.quantizable` has them; others are FP16.

    Raises:
        DataError: no images, images that do not fit the graph, or a broken file.
        ResourceError: the disk is full.
    """
    model = load_graph(onnx_path)
    check_images(model, calibration, purpose="INT8 calibration")
    maxima = half.absolute_maxima(model, calibration)
    quantized = in_qdq_opset(model)
    insert_qdq(quantized, layers)
    half.convert(quantized, maxima)
    keep_labels(model, quantized)
    save_graph(quantized, output)


def to_int8_cpu(onnx_path: Path, output: Path, *, calibration: npt.NDArray[Any]) -> None:
    """Writes the INT8 graph for ONNX Runtime on CPUs, complete or not at all.

    Linear layers multiply bytes: 7-bit weights with one scale per output channel, and activations
    with a scale computed from each batch. The rest is float32. Without linear layers, as in a CNN,
    convolutions multiply bytes, with fixed ranges (`int8_convs`). Node names, metadata and opset
    are kept.

    Args:
        onnx_path: a float32 file of `targets.onnx.trace`.
        output: the file to write.
        calibration: [N, 3, S, S], as the graph takes them; real images, for a CNN's ranges.

    Raises:
        DataError: no images, images that do not fit the graph, or a broken file.
        ResourceError: the file cannot be written.
    """
    model = load_graph(onnx_path)
    check_images(model, calibration, purpose="INT8 calibration")
    if weight_matmuls(model):
        _make_dynamic(model)
    else:
        quantize_convs(model, calibration, CPU_WEIGHT_LEVELS)
    drop_unused(model)
    save_graph(model, output)


def in_qdq_opset(model: Any) -> Any:
    """A copy in the opset whose Q/DQ take FP16 scales, with all names."""
    from onnx import version_converter

    converted = version_converter.convert_version(model, QDQ_OPSET)
    drop_unused(converted)
    return converted


def _make_dynamic(model: Any) -> None:
    """Replaces the blocks' linear products with products of bytes, in the form that ORT fuses."""
    from onnx import helper, numpy_helper

    linear, constants = {node.name for node in weight_matmuls(model)}, initializers(model)
    quantized: set[str] = set()
    nodes: list[Any] = []
    for node in list(model.graph.node):
        if node.name not in linear:
            nodes.append(node)
            continue
        (x, weight), name = node.input, node.name
        q, scale, zero = (f"{x}/{part}" for part in ("int8", "scale", "zero_point"))
        if x not in quantized:
            quantized.add(x)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [q, scale, zero],
                                          name=f"{x}/DynamicQuantizeLinear"))  # fmt: skip
        values, scales = _quantize(numpy_helper.to_array(constants[weight]), CPU_WEIGHT_LEVELS)
        set_initializer(model, f"{name}/int8", values)
        set_initializer(model, f"{name}/scale", scales)
        total, product = f"{name}/sum", f"{name}/scales"
        nodes += [
            helper.make_node("MatMulInteger", [q, f"{name}/int8", zero], [total], name=name),
            helper.make_node("Cast", [total], [f"{name}/float"], name=f"{name}/Cast", to=1),
            helper.make_node("Mul", [scale, f"{name}/scale"], [product], name=f"{name}/Mul"),
            helper.make_node("Mul", [f"{name}/float", product], node.output, name=f"{name}/Mul_2"),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantize(
    weight: npt.NDArray[Any], n_levels: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric integers [K, N] of a weight [K, N], and a scale for each column, [N]."""
    largest = np.abs(weight).max(axis=0)
    scales = np.where(largest > 0, largest, 1.0) / n_levels
    values = np.rint(weight / scales).clip(-n_levels, n_levels).astype(np.int8)
    return values, scales.astype(np.float32)


def keep_labels(source: Any, model: Any) -> None:
    """Copies names, metadata and version labels from the graph that it was made from."""
    model.ir_version = source.ir_version
    model.graph.name = source.graph.name
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    for value, original in zip(
        (*model.graph.input, *model.graph.output),
        (*source.graph.input, *source.graph.output),
        strict=True,
    ):
        value.CopyFrom(original)
