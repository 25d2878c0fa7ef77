"""Builds ExecuTorch programs whose layers XNNPACK computes, in float32 and in INT8.

API: executorch 1.5, https://docs.pytorch.org/executorch/1.5/backends-xnnpack.html. INT8 is pt2e's:
linear layers and wide convolutions are quantized, weights with a range for each output channel. A
linear layer takes the range of its input from each token as it comes, a convolution from real
images. The first convolution, depthwise ones, attention's own two products, normalization and the
head stay in float32, as in the other INT8 files.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdedge.runtime.native_lines import filter_native_stderr, quiet
from kdedge.targets.executorch import EXECUTORCH
from kdedge.targets.executorch.run import SMALLEST_BATCH, open_runtime
from kdedge.targets.onnx.graph import MIN_CHANNELS
from kdedge.targets.program import example_images, export_program, write_converted
from kdedge.targets.protocol import HEAD_LAYERS, LOG_LINES, BuildRequest, PlannedFile

_HEAD = {name.rstrip("/") for name in HEAD_LAYERS}
_CALIBRATION_BATCH = 32
_CONVOLUTIONS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default)
_EPS = 2.0**-12  # the smallest scale, as XNNPACK's own settings have it


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds one program.

    Raises:
        RecipeError: ExecuTorch cannot express a step of the model.
        ResourceError: memory ran out, or the file cannot be written.
    """

    def lower() -> bytes:
        with quiet():
            lowered = _lowered(file, request)
        lacking = _without_kernel(lowered.exported_program().graph_module)
        if lacking is not None:
            raise ValueError(f"its runtime has no kernel for {lacking}")
        return bytes(lowered.buffer)

    name = f"executorch {EXECUTORCH.version}"
    write_converted(request.folder / file.name, lower, converter=name, flag="--executorch")
    return {"tool": "ExecuTorch", "version": EXECUTORCH.version, "torch": torch.__version__}


def _lowered(file: PlannedFile, request: BuildRequest) -> Any:
    """The program with all that XNNPACK computes handed to it, and its smallest batch in it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    batches, size_px = request.artifact.batches, request.artifact.preprocess.size_px
    model = copy.deepcopy(request.model).eval()
    example = example_images(model, size_px=size_px, batches=batches)
    program: Any = export_program(model, example, batches=batches)
    if file.precision == "int8":
        assert request.images is not None
        parts = calibration_batches(request.images, batches)
        program = export_program(quantized(program.module(), parts), example, batches=batches)
    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={SMALLEST_BATCH: batches[0]},
    )
    return lowered.to_executorch()


def calibration_batches(
    images: npt.NDArray[Any], batches: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Batches that the program takes; copies of the last image fill one that is too small."""
    low, high = batches
    size = max(low, min(high, _CALIBRATION_BATCH))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = max(0, low - len(part))
        yield torch.from_numpy(np.concatenate([part, part[-1:].repeat(missing, 0)]))


def quantized(module: Any, parts: Iterable[torch.Tensor]) -> Any:
    """Quantizes a program's module by pt2e.

    Args:
        module: `program.module()`, from images to logits; changed.
        parts: batches of calibration images, one or more; a convolution's ranges span their values.

    Returns:
        The module with quantized layers, which computes what XNNPACK does with float32 numbers.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    of_linear = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = XNNPACKQuantizer().set_filter_function(_is_quantized)
    quantizer.set_operator_type(torch.ops.aten.linear.default, of_linear)
    config = get_symmetric_quantization_config(is_per_channel=True)
    # By the largest value: on photos100, ranges by entropy give the same agreement
    by_largest = MinMaxObserver.with_args(eps=_EPS)
    activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=by_largest)
    config = dataclasses.replace(config, input_activation=activation, output_activation=activation)
    for kind in _CONVOLUTIONS:
        quantizer.set_operator_type(kind, config)
    convolutions = [node for node in module.graph.nodes if node.target in _CONVOLUTIONS]
    has_ranges = any(map(_is_quantized, convolutions))
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for part in parts if has_ranges else islice(parts, 1):  # one shows it the weights
            prepared(part)
    return convert_pt2e(prepared)


def _is_quantized(node: Any) -> bool:
    """Whether a node is quantized, if it is a linear layer or a convolution."""
    if module_path(node).partition(".")[0] in _HEAD:
        return False
    if node.target not in _CONVOLUTIONS:
        return True
    weight = operator.attrgetter(node.args[1].target)(node.graph.owning_module)
    return bool(weight.shape[1] >= MIN_CHANNELS)


def module_path(node: Any) -> str:
    """Where in the model a node comes from, such as `blocks.0.mlp.c_fc`."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return str(paths[-1]).replace("L['self']", "").lstrip(".") if paths else ""


def _without_kernel(module: Any) -> str | None:
    """An operator that the runtime lacks, and where it is in the model; None if it has all."""
    with filter_native_stderr(LOG_LINES):
        known = open_runtime().operator_registry.operator_names
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.name.startswith("aten::"):
            continue
        name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
        if name not in known:
            return f"{name} (in {module_path(node) or node.name})"
    return None
