"""Builds ExecuTorch programs whose layers XNNPACK runs, in float32 and in INT8.

API: executorch 1.5, https://docs.pytorch.org/executorch/1.5/backends-xnnpack.html. For INT8, pt2e
quantizes linear layers and wide convolutions, and their weights with a range per output channel.
The input of a linear layer gets its range from each token at run time, the input of a convolution
from calibration images. The first convolution, depthwise convolutions, the two matrix products of
attention, normalization and the head stay in float32, as in the other INT8 files.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy.typing as npt
import torch

from kdedge.builders.program import example_images, export_program, write_converted
from kdedge.native_lines import LOG_LINES, filter_native_stderr, quiet
from kdedge.runtime.backend import padded_batches
from kdedge.targets.base import HEAD_LAYERS, BuildRequest, PlannedFile
from kdedge.targets.executorch import EXECUTORCH
from kdedge.targets.executorch.run import SMALLEST_BATCH, open_runtime
from kdedge.targets.onnx.graph import MIN_CHANNELS

_HEAD = {name.rstrip("/") for name in HEAD_LAYERS}
_CALIBRATION_BATCH = 32
_CONVOLUTIONS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default)
_EPS = 2.0**-12  # the smallest scale, as in XNNPACK's own settings


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds one program.

    Raises:
        RecipeError: ExecuTorch cannot express a step of the model.
        ResourceError: memory ran out, or the file cannot be written.
    """

    def lower() -> bytes:
        with quiet():
            lowered = _lowered(file, request)
        missing = _missing_kernel(lowered.exported_program().graph_module)
        if missing is not None:
            raise ValueError(f"its runtime has no kernel for {missing}")
        return bytes(lowered.buffer)

    write_converted(request.path, lower, converter=f"executorch {EXECUTORCH.version}")
    return {"tool": "ExecuTorch", "version": EXECUTORCH.version, "torch": torch.__version__}


def _lowered(file: PlannedFile, request: BuildRequest) -> Any:
    """The program with XNNPACK as its backend, which also stores its smallest batch."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    batches = request.artifact.batches
    size_px = request.artifact.preprocess.size_px
    model = copy.deepcopy(request.model).eval()
    example = example_images(model, size_px=size_px, batches=batches)
    program: Any = export_program(model, example, batches=batches)
    if file.precision == "int8":
        assert request.images is not None
        parts = calibration_batches(request.images, batches)
        program = export_program(quantized(program.module(), parts), example, batches=batches)
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={SMALLEST_BATCH: batches[0]}
    )
    return lowered.to_executorch()


def calibration_batches(
    images: npt.NDArray[Any], batches: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Batches for the program, which takes `batches` images, from the least to the most."""
    low, high = batches
    size = max(low, min(high, _CALIBRATION_BATCH))
    return map(torch.from_numpy, padded_batches(images, low, size))


def quantized(module: Any, parts: Iterable[torch.Tensor]) -> Any:
    """Quantizes a program's module by pt2e.

    Args:
        module: `program.module()`, from images to logits; it is changed.
        parts: one or more batches of calibration images, whose values the ranges of convolutions
            span.

    Returns:
        The module with quantized layers, which computes in float32 what XNNPACK computes in INT8.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    linear_config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = XNNPACKQuantizer().set_filter_function(_is_quantized)
    quantizer.set_operator_type(torch.ops.aten.linear.default, linear_config)
    config = get_symmetric_quantization_config(is_per_channel=True)
    # Ranges by the largest value; on photos100, ranges by entropy give the same agreement
    by_largest = MinMaxObserver.with_args(eps=_EPS)
    activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=by_largest)
    config = dataclasses.replace(config, input_activation=activation, output_activation=activation)
    for kind in _CONVOLUTIONS:
        quantizer.set_operator_type(kind, config)
    convolutions = [node for node in module.graph.nodes if node.target in _CONVOLUTIONS]
    has_ranges = any(map(_is_quantized, convolutions))
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        # Observers of weights need one batch, observers of ranges all
        needed = parts if has_ranges else islice(parts, 1)
        for part in needed:
            prepared(part)
    return convert_pt2e(prepared)


def _is_quantized(node: Any) -> bool:
    """Whether a node that is a linear layer or a convolution is quantized."""
    if module_path(node).partition(".")[0] in _HEAD:
        return False
    if node.target not in _CONVOLUTIONS:
        return True
    weight = operator.attrgetter(node.args[1].target)(node.graph.owning_module)
    return bool(weight.shape[1] >= MIN_CHANNELS)


def module_path(node: Any) -> str:
    """Name of the module in the model that a node belongs to, such as `blocks.0.mlp.c_fc`."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return str(paths[-1]).replace("L['self']", "").lstrip(".") if paths else ""


def _missing_kernel(module: Any) -> str | None:
    """An operator without a kernel in the runtime, and its module; None if all have kernels."""
    with filter_native_stderr(LOG_LINES):
        kernels = open_runtime().operator_registry.operator_names
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.name.startswith("aten::"):
            continue
        name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
        if name not in kernels:
            place = module_path(node) or node.name
            return f"{name} (in {place})"
    return None
