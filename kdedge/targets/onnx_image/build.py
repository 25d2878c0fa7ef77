"""Builds ONNX files that take images, from ONNX files that take pixels.

The graph preprocesses like Pillow on this machine, bit for bit: a file is built only if both give
the same bytes for images of many shapes.
"""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import PIL
from PIL import Image

from kdedge import __version__
from kdedge.errors import RecipeError, SetupError
from kdedge.runtime.artifact import INPUT_NAME, PixelType, Precision
from kdedge.runtime.preprocess import Preprocess, resize_and_crop
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.onnx.graph import load_graph, save_graph, set_nodes
from kdedge.targets.onnx_image import run
from kdedge.targets.onnx_image.graph import (
    IMAGE_NAME,
    PIXELS_NAME,
    Nodes,
    Order,
    Value,
    add_preprocessing,
)

# Height and width in halves of the model's side: smaller, equal, larger, long, and tall enough for
# Pillow's other order of the axes
_PROBES = ((1, 1), (2, 2), (2, 3), (5, 2), (3, 7), (8, 3), (9, 1))


def plan(precision: Precision) -> PlannedFile:
    """The file of a precision."""
    if precision == "int8":
        return PlannedFile("model.image.int8-cpu.onnx", "int8", "cpu")
    return PlannedFile("model.image.onnx", "fp32", "any")


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds a file; external weights move into the file.

    Raises:
        RecipeError: the graph takes batches of a fixed size other than 1.
        DataError: the ONNX file is damaged, its weights exceed one file, or the file exists.
        SetupError: Pillow on this machine resizes differently.
        ResourceError: the file cannot be written.
    """
    assert request.onnx_path is not None
    artifact = request.artifact
    path = request.path
    if artifact.batch not in ("dynamic", 1):
        raise RecipeError(
            f"{request.onnx_path} takes batches of {artifact.batch} images, but a file with"
            " preprocessing takes one image at a time.\n"
            "  Set export.batch=dynamic, or leave this target out."
        )
    model = load_graph(request.onnx_path)
    order = find_order(artifact.preprocess)
    _prepend(model, artifact.preprocess, artifact.pixels, order)
    save_graph(model, path)
    return {
        "tool": "kdedge",
        "version": __version__,
        "pillow": PIL.__version__,
        "order": order,
        "pixels": artifact.pixels,
        "input": _INPUT_RECORD,
    }


_INPUT_RECORD = {
    "name": IMAGE_NAME,
    "dtype": "uint8",
    "layout": "HWC",
    "channels": "RGB",
    "values": [0, 255],
}


def find_order(preprocess: Preprocess) -> Order:
    """The order of the axes with which the graph gives the same bytes as Pillow here.

    Raises:
        SetupError: no order gives the same bytes.
    """
    rng = np.random.default_rng(0)
    size = preprocess.size_px
    images = [
        rng.integers(0, 256, (max(1, size * high // 2), max(1, size * wide // 2), 3), np.uint8)
        for high, wide in _PROBES
    ]
    expected = [np.asarray(resize_and_crop(Image.fromarray(image), preprocess)) for image in images]
    orders: tuple[Order, ...] = get_args(Order)
    for order in reversed(orders):
        graph = preprocess_graph(preprocess, order).SerializeToString()
        outputs = [pixels.transpose(1, 2, 0) for pixels in run.run_preprocessing(graph, images)]
        if all(map(np.array_equal, outputs, expected)):
            return order
    raise SetupError(
        f"Pillow {PIL.__version__} resizes otherwise than the graph.\n"
        "  Install a Pillow that is known to agree: pip install 'pillow<=13.0.0'"
    )


def preprocess_graph(preprocess: Preprocess, order: Order) -> Any:
    """A graph of only the preprocessing, as an `onnx.ModelProto`."""
    from onnx import helper

    nodes = Nodes()
    add_preprocessing(nodes, preprocess, order)
    graph = helper.make_graph(
        nodes.nodes, "kdedge", [_image()], [_pixels(preprocess)], nodes.constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _image() -> Any:
    """The description of the graph's input `image`."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(IMAGE_NAME, TensorProto.UINT8, ["height", "width", 3])


def _pixels(preprocess: Preprocess) -> Any:
    """The description of the graph's output `pixels`."""
    from onnx import TensorProto, helper

    size = preprocess.size_px
    return helper.make_tensor_value_info(PIXELS_NAME, TensorProto.UINT8, [1, 3, size, size])


def _prepend(model: Any, preprocess: Preprocess, pixels: PixelType, order: Order) -> None:
    """Inserts the preprocessing before a graph, in place."""
    graph = model.graph
    nodes = Nodes()
    add_preprocessing(nodes, preprocess, order)
    image = Value(nodes, PIXELS_NAME)
    if pixels == "uint8":
        nodes.add("Identity", image, output=INPUT_NAME)
    else:
        nodes.add("Div", nodes.cast(image, "FLOAT"), np.float32(255), output=INPUT_NAME)
    set_nodes(model, [*nodes.nodes, *graph.node])
    graph.initializer.extend(nodes.constants)
    del graph.value_info[:]
    graph.input[0].CopyFrom(_image())
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph.output.append(_pixels(preprocess))
    for entry in model.metadata_props:
        if entry.key == "input":
            entry.value = json.dumps(_INPUT_RECORD)
        elif entry.key == "preprocess":
            steps = ["Decode to 8-bit RGB, upright by EXIF's orientation: the graph does the rest."]
            entry.value = json.dumps({"order": order, "steps": steps})
