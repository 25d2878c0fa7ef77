"""Builds OpenVINO files from ONNX files; they run on any CPU that OpenVINO supports.

INT8 files are built from the ONNX file for TensorRT, with symmetric Q/DQ around the linear layers
of the blocks, which OpenVINO also computes in INT8. On processors on which products of bytes can
overflow, weights get seven bits, as in the ONNX file for CPUs; such a file has the same results on
every processor. OpenVINO's own quantizer, NNCF, changes more predictions at the same speed
(`benchmarks/README.md`).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from kdedge.errors import ResourceError
from kdedge.files import written_together
from kdedge.runtime.machine import lacks_vnni
from kdedge.targets.base import CPU_WEIGHT_LEVELS, BuildRequest, PlannedFile
from kdedge.targets.cpu_backend import explaining
from kdedge.targets.openvino import OPENVINO

log = logging.getLogger(__name__)


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds a graph with its weights.

    Raises:
        DataError: OpenVINO cannot read the ONNX file.
        MissingPackage: OpenVINO is not installed.
        ResourceError: the file cannot be written.
    """
    assert request.onnx_path is not None
    ov = OPENVINO.load()
    built_with: dict[str, Any] = {"tool": "OpenVINO", "version": OPENVINO.version}
    with explaining(request.onnx_path, "read", OPENVINO):
        model = ov.Core().read_model(request.onnx_path)
    if file.precision == "int8" and lacks_vnni():
        log.info("Weights get 7 bits, as this CPU adds products of bytes in 16 bits (no VNNI).")
        _limit_weights(ov, model, CPU_WEIGHT_LEVELS)
        built_with["weight_levels"] = CPU_WEIGHT_LEVELS
    try:
        with written_together(request.path) as part:
            ov.save_model(model, part, compress_to_fp16=file.precision == "fp16")
    except RuntimeError as error:  # from OpenVINO's own writer
        raise ResourceError(
            f"{request.path} could not be written: {error}.\n"
            "  Free some space, or name another folder that you may write to."
        ) from error
    return built_with


def _limit_weights(ov: Any, model: Any, n_levels: int) -> None:
    """Scales the integers of INT8 weights from at most 127 to at most `n_levels`, in place.

    Args:
        ov: the module `openvino`.
        model: the graph, whose INT8 weights [..., N] are (integers - zero) * scales.
        n_levels: the largest magnitude afterwards.
    """
    ops = ov.opset13
    for weight in model.get_ordered_ops():
        if weight.get_type_name() != "Constant" or weight.get_element_type() != ov.Type.i8:
            continue
        scaling = _scaling(weight)
        if len(weight.get_output_shape(0)) < 2 or scaling is None:  # a zero point, not a weight
            continue
        steps = np.rint(weight.data.astype(np.float64) * (n_levels / 127))
        scales = scaling.input(1).get_source_output()
        factor = ops.constant(127 / n_levels, dtype=scales.get_element_type())
        larger = ops.multiply(scales, factor)
        scaling.input(1).replace_source_output(larger.output(0))
        weight.output(0).replace(ops.constant(steps.astype(np.int8)).output(0))


def _scaling(weight: Any) -> Any:
    """The node that multiplies a weight by its scales, if it has no other reader; else None."""
    node = weight
    while node.get_type_name() in ("Constant", "Convert", "Subtract"):
        readers = list(node.output(0).get_target_inputs())
        if len(readers) != 1:
            return None
        node = readers[0].get_node()
    return node if node.get_type_name() == "Multiply" else None
