"""The files of a student that was trained with INT8 layers: exactly what was trained.

The float32 file has the layers' Q/DQ with the trained scales and levels, and computes the rest in
float32. The INT8 file for GPUs is the same graph with FP16 for the rest; that for CPUs is the
float32 file itself, which ONNX Runtime computes with products of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdedge.errors import GateError
from kdedge.quantization.fake import QuantizedLayer
from kdedge.targets.onnx.graph import load_graph, save_graph
from kdedge.targets.onnx.insert import insert_qdq, quantizable
from kdedge.targets.onnx.qdq import check_qdq
from kdedge.targets.onnx.quantize import in_qdq_opset, keep_labels


def add_trained_qdq(path: Path, layers: Mapping[str, QuantizedLayer]) -> None:
    """Adds the Q/DQ of trained layers to a float32 file, which is replaced.

    Args:
        path: a file of `targets.onnx.trace`, with its weights inside.
        layers: by the name of the module in the traced model.

    Raises:
        GateError: a layer is not in the graph, or the result is not quantized as TensorRT requires.
        ResourceError: the file cannot be written.
    """
    model = load_graph(path)
    known = quantizable(model).keys()
    missing = sorted(layers.keys() - known)
    if missing:
        raise GateError(
            f"{path.name}: {len(missing)} of {len(layers)} layers that were trained in INT8 are not"
            f" in the graph, first {missing[0]}.\n"
            "  Export the student that this one was compressed from."
        )
    quantized = in_qdq_opset(model)
    insert_qdq(quantized, layers)
    check_qdq(quantized, in_float=known - layers.keys())
    keep_labels(model, quantized)
    save_graph(quantized, path)
