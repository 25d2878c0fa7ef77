"""Builds LiteRT (TensorFlow Lite) files, in float32 and in INT8.

API: litert-torch 0.10, https://github.com/google-ai-edge/litert-torch, converts the folded model;
ai-edge-quantizer 0.10, https://github.com/google-ai-edge/ai-edge-quantizer, quantizes the file.
Linear layers and wide convolutions are quantized, and their weights with a range per output
channel. The input of a linear layer gets its range from each token at run time, the input of a
convolution from calibration images. The first convolution, depthwise convolutions, the two matrix
products of attention, normalization and the head stay in float32, as in the other INT8 files.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdedge.builders.program import example_images, write_converted
from kdedge.native_lines import ANY_LINE, silenced
from kdedge.runtime.artifact import INPUT_NAME
from kdedge.runtime.backend import padded_batches
from kdedge.targets.base import HEAD_LAYERS, BuildRequest, PlannedFile
from kdedge.targets.litert import CONVERTER, QUANTIZER, run
from kdedge.targets.onnx.graph import MIN_CHANNELS

_LINEAR = "FULLY_CONNECTED"
# A weight's name ends with its layer's class and name: .../torch.nn.modules.linear.Linear_hidden;1
_HEAD = re.compile(rf"_({'|'.join(name.rstrip('/') for name in HEAD_LAYERS)})(\.\w+)?;\d*$")


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds one file.

    Raises:
        RecipeError: LiteRT cannot express a step of the model.
        ResourceError: memory ran out, or the file cannot be written.
    """

    def convert() -> bytes:
        with silenced(ANY_LINE):  # the converter and JAX print their steps
            data = converted(request)
            if file.precision != "int8":
                return data
            assert request.images is not None
            return quantized(data, request.images, n_images=request.artifact.batches[0])

    write_converted(request.path, convert, converter=f"litert-torch {CONVERTER.version}")
    return {
        "tool": "LiteRT Torch",
        "version": CONVERTER.version,
        "torch": torch.__version__,
        **({"quantizer": QUANTIZER.version} if file.precision == "int8" else {}),
    }


def converted(request: BuildRequest) -> bytes:
    """Converts the folded model to a float32 file for the artifact's smallest batch."""
    low = request.artifact.batches[0]
    size_px = request.artifact.preprocess.size_px
    images = example_images(request.model, size_px=size_px, batches=(low, low))
    with (
        torch.no_grad(),
        tempfile.TemporaryDirectory(dir=request.path.parent, prefix=".litert.") as folder,
    ):
        written = Path(folder) / "model.tflite"
        model = CONVERTER.load().convert(request.model.eval(), sample_kwargs={INPUT_NAME: images})
        model.export(str(written))
        return written.read_bytes()


def quantized(data: bytes, images: npt.NDArray[Any], *, n_images: int) -> bytes:
    """Converts layers of a float32 file to INT8.

    Args:
        data: the file.
        images: [N, 3, S, S], calibration images as the file takes them.
        n_images: the file's batch; copies of the first images fill the last one.
    """
    recipes = importlib.import_module("ai_edge_quantizer.recipe_manager")
    quantizer = importlib.import_module("ai_edge_quantizer.quantizer")

    recipe = recipes.RecipeManager()
    for operator, scope in quantized_layers(data):
        layer = {"regex": f"^{re.escape(scope)}$", "operation_name": operator}
        if operator == _LINEAR:
            recipe.add_dynamic_config(num_bits=8, **layer)
        else:
            recipe.add_static_config(activation_num_bits=8, weight_num_bits=8, **layer)
    file = quantizer.Quantizer(data, recipe.get_quantization_recipe())
    ranges = _ranges(data, recipe, images, n_images) if file.need_calibration else None
    return bytes(file.quantize(ranges, enable_progress_report=False).quantized_model)


def _ranges(data: bytes, recipe: Any, images: npt.NDArray[Any], n_images: int) -> Any:
    """Ranges of the values in a file, for the quantizer; arguments as for `quantized`."""
    calibrator = importlib.import_module("ai_edge_quantizer.calibrator")
    feeds = [{INPUT_NAME: part} for part in padded_batches(images, n_images, n_images)]
    # Ranges from the smallest to the largest value of all images; the quantizer's default averages
    ranges = calibrator.Calibrator(
        data, num_threads=torch.get_num_threads(), qsv_update_func=_union_of_ranges
    )
    ranges.calibrate({run.SIGNATURE: feeds}, recipe)
    return ranges.get_model_qsvs()


def quantized_layers(data: bytes) -> Iterator[tuple[str, str]]:
    """Operators and scopes, in the quantizer's names, of the layers that become INT8."""
    tools = importlib.import_module("ai_edge_quantizer.utils.tfl_flatbuffer_utils")
    model = tools.read_model(data)
    (graph,) = model.subgraphs
    for step in graph.operators:
        operator = tools.TFL_OP_CODE_TO_NAME.get(model.operatorCodes[step.opcodeIndex].builtinCode)
        if operator not in (_LINEAR, "CONV_2D"):
            continue
        weight = graph.tensors[step.inputs[1]]
        is_constant = model.buffers[weight.buffer].data is not None
        is_head = _HEAD.search(tools.get_tensor_name(weight)) is not None
        # A convolution's weight is [C_out, H, W, C_in]; all linear layers of the encoder are wide
        is_wide = operator == _LINEAR or weight.shape[-1] >= MIN_CHANNELS
        if is_constant and is_wide and not is_head:
            yield operator, tools.get_op_scope(step, graph.tensors)


def _union_of_ranges(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The smallest range that contains both ranges."""
    if not before:
        return now
    return {
        "min": np.minimum(before["min"], now["min"]),
        "max": np.maximum(before["max"], now["max"]),
    }
