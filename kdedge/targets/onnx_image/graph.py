"""Resize, crop and scaling as ONNX nodes with the same results as Pillow.

Pillow resizes one axis after the other, and rounds to bytes after each (`src/libImaging/Resample.c`
of Pillow). An output pixel is a sum over the pixels below a kernel, which is widened if the image
shrinks. Here each axis is a matrix product: blocks of outputs times the window of input pixels that
they need. All positions are computed as integers, weights have 22 bits after the point as in
Pillow, and sums are exact in float64, so that not a single byte differs.

ONNX's own Resize cannot be used: in ONNX Runtime 1.24 its antialiased cubic resize differs from
Pillow's by up to 3 of 255 (`benchmarks/README.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdedge.runtime.preprocess import Preprocess

# The graph's input: uint8 [height, width, 3], RGB
IMAGE_NAME = "image"

# An output besides the logits: the preprocessed image, uint8 [1, 3, S, S], RGB
PIXELS_NAME = "pixels"

# The axis that Pillow resizes first: the width, or since a version between 12.0 and 13.0, the
# height if it shrinks by more than twice as many pixels as the width does
Order = Literal["width first", "by size"]

_BLOCK = 16  # outputs that share a window of inputs; larger blocks multiply more zeros
_WEIGHT_UNIT = 2.0**22  # PRECISION_BITS in Resample.c
_SUPPORT = {"bicubic": 2, "bilinear": 1}


class Nodes:
    """ONNX nodes and constants that are added one after the other.

    Attributes:
        nodes: the nodes, in order.
        constants: the constants, each once.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output, and returns the output's name."""
        from onnx import helper

        name = f"preprocess/{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, inputs, [output or name], name=name, **attributes)
        self.nodes.append(node)
        return output or name

    def integers(self, values: Any) -> str:
        """The name of an int64 constant."""
        return self._constant(np.asarray(values, np.int64))

    def real(self, value: float) -> str:
        """The name of a float64 constant."""
        return self._constant(np.asarray(value, np.float64))

    def _constant(self, values: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._names:
            self._names[key] = f"preprocess/constant_{len(self._names)}"
            self.constants.append(numpy_helper.from_array(values, self._names[key]))
        return self._names[key]


def add_preprocessing(nodes: Nodes, preprocess: Preprocess, order: Order) -> None:
    """Adds nodes from `IMAGE_NAME` to `PIXELS_NAME`, which compute `resize_and_crop`.

    Args:
        nodes: the list to which the nodes are added.
        preprocess: size, interpolation and resize mode.
        order: the order of the axes.
    """
    add, integers = nodes.add, nodes.integers
    size = preprocess.size_px
    shape = add("Shape", IMAGE_NAME)
    height = add("Slice", shape, integers([0]), integers([1]))
    width = add("Slice", shape, integers([1]), integers([2]))
    # At least 1: if there are no pixels, a division by 0 would end the process
    shorter = add("Max", add("Min", height, width), integers([1]))
    tall = [height, *_resize_crop(nodes, height, shorter, preprocess)]
    wide = [width, *_resize_crop(nodes, width, shorter, preprocess)]
    first, second = wide, tall
    rows = add("Transpose", IMAGE_NAME, perm=_WIDTH_FIRST) if order == "width first" else ""
    is_tall = ""
    if order == "by size":
        shrinkage = [add("Sub", sides[0], sides[1]) for sides in (tall, wide)]
        limit = add("Max", add("Mul", shrinkage[1], integers([2])), integers([0]))
        is_tall = add("Greater", shrinkage[0], limit)
        rows = _transpose_by_size(nodes, is_tall)
        first = [add("Where", is_tall, *both) for both in zip(tall, wide, strict=True)]
        second = [add("Where", is_tall, *both) for both in zip(wide, tall, strict=True)]
    rows = add("Reshape", rows, add("Concat", first[0], integers([-1]), axis=0))
    rows = _resized(nodes, rows, first, preprocess)  # [S, 3 * second]
    rows = add("Reshape", rows, add("Concat", integers([3 * size]), second[0], axis=0))
    rows = add("Transpose", rows, perm=[1, 0])  # [second, S * 3]
    rows = _resized(nodes, rows, second, preprocess)
    square = add("Reshape", rows, integers([size, size, 3]))  # [second, first, 3]
    planes = add("Transpose", square, perm=[2, 0, 1])
    if order == "by size":
        planes = add("Where", is_tall, add("Transpose", square, perm=[2, 1, 0]), planes)
    add("Unsqueeze", planes, integers([0]), output=PIXELS_NAME)


# [H, W, 3] -> first the axis that is resized first, then colors. Runtimes move a single axis fast:
# with colors last, ONNX Runtime needed half of its time for this step.
_WIDTH_FIRST, _HEIGHT_FIRST = [1, 2, 0], [0, 2, 1]


def _transpose_by_size(nodes: Nodes, is_tall: str) -> str:
    """[H, W, 3] -> [first, 3, second], with the axis first that is resized first."""
    from onnx import TensorProto, helper

    def branch(name: str, perm: list[int]) -> Any:
        out = helper.make_tensor_value_info(f"preprocess/{name}", TensorProto.UINT8, [None] * 3)
        node = helper.make_node("Transpose", [IMAGE_NAME], [out.name], name=out.name, perm=perm)
        return helper.make_graph([node], name, [], [out])

    return nodes.add(
        "If",
        nodes.add("Squeeze", is_tall),
        then_branch=branch("height_first", _HEIGHT_FIRST),
        else_branch=branch("width_first", _WIDTH_FIRST),
    )


def _resize_crop(nodes: Nodes, side: str, shorter: str, preprocess: Preprocess) -> tuple[str, str]:
    """[1], a side after the resize, and [1], the offset of the crop in it."""
    add, integers = nodes.add, nodes.integers
    size = preprocess.size_px
    if preprocess.resize_mode == "squash":
        return integers([size]), integers([0])
    resized = add("Div", add("Mul", side, integers([size])), shorter)  # rounded down
    resized = add("Max", resized, integers([size]))
    rest = add("Sub", resized, integers([size]))
    half, odd = add("Div", rest, integers([2])), add("Mod", rest, integers([2]))
    # Half of an odd number is rounded to the nearest even number, as in Python's `round`
    return resized, add("Add", half, add("Mul", odd, add("Mod", half, integers([2]))))


def _resized(nodes: Nodes, rows: str, axis: list[str], preprocess: Preprocess) -> str:
    """Resizes and crops the first axis: [side, K] -> [S, K], bytes.

    Args:
        nodes: the list to which the nodes are added.
        rows: the bytes.
        axis: the side, its length after the resize, and the offset of the crop.
        preprocess: size and interpolation.
    """
    add, integers, real = nodes.add, nodes.integers, nodes.real
    window, weights = _window_and_weights(nodes, axis, preprocess)
    inputs = add("Gather", rows, window, axis=0)  # [blocks, window, K]
    sums = add("MatMul", weights, _cast(nodes, inputs, "DOUBLE"))  # [blocks, _BLOCK, K]
    values = add("Floor", add("Add", add("Mul", sums, real(1 / _WEIGHT_UNIT)), real(0.5)))
    values = _cast(nodes, add("Clip", values, real(0), real(255)), "UINT8")
    n_outputs = _n_blocks(preprocess) * _BLOCK
    rows = add("Reshape", values, integers([n_outputs, -1]))
    return add("Slice", rows, integers([0]), integers([preprocess.size_px]), integers([0]))


def _n_blocks(preprocess: Preprocess) -> int:
    return -(-preprocess.size_px // _BLOCK)


def _window_and_weights(nodes: Nodes, axis: list[str], preprocess: Preprocess) -> tuple[str, str]:
    """The inputs of each block, [blocks, window], and their weights, [blocks, _BLOCK, window].

    Output o has its center at (o + 1/2) side / resized. Input j is |(2j + 1) resized - (2o + 1)
    side| / (2 max(side, resized)) units of the kernel away from it.
    """
    add, integers, real = nodes.add, nodes.integers, nodes.real
    side, resized, offset = axis
    support = _SUPPORT[preprocess.interpolation]
    larger = add("Max", side, resized)
    places = np.arange(_n_blocks(preprocess) * _BLOCK).reshape(-1, _BLOCK, 1)
    odd = add("Mul", add("Add", integers(places), offset), integers([2]))
    centers = add("Mul", add("Add", odd, integers([1])), side)  # (2o + 1) side
    reach = add("Mul", larger, integers([2 * support]))
    first = add("Slice", centers, integers([0]), integers([1]), integers([1]))
    start = add("Add", add("Sub", first, reach), resized)
    start = add("Div", start, add("Mul", resized, integers([2])))
    width = add("Add", add("Mul", side, integers([_BLOCK - 1])), reach)
    width = add("Min", add("Add", add("Div", width, resized), integers([2])), side)
    # The window stays inside the image; pixels outside of the kernel have the weight 0
    start = add("Min", add("Max", start, integers([0])), add("Sub", side, width))
    steps = add("Range", integers(0), add("Squeeze", width), integers(1))
    window = add("Add", start, steps)  # [blocks, 1, window]
    distance = add("Mul", add("Add", add("Mul", window, integers([2])), integers([1])), resized)
    distance = _cast(nodes, add("Abs", add("Sub", distance, centers)), "DOUBLE")
    units = add("Div", distance, _cast(nodes, add("Mul", larger, integers([2])), "DOUBLE"))
    weights = _KERNELS[preprocess.interpolation](nodes, units)
    weights = add("Div", weights, add("ReduceSum", weights, integers([2]), keepdims=1))
    rounded = add("Add", add("Mul", add("Abs", weights), real(_WEIGHT_UNIT)), real(0.5))
    weights = add("Mul", add("Sign", weights), add("Floor", rounded))
    return add("Squeeze", window, integers([1])), weights


def _bicubic(nodes: Nodes, x: str) -> str:
    """Keys' cubic convolution with a = -1/2 (IEEE ASSP 29, 1981, equation 15), for x >= 0."""
    add, real = nodes.add, nodes.real
    near = add("Sub", add("Mul", x, real(1.5)), real(2.5))
    near = add("Add", add("Mul", add("Mul", near, x), x), real(1))
    far = add("Add", add("Mul", add("Sub", x, real(5)), x), real(8))
    far = add("Mul", add("Sub", add("Mul", far, x), real(4)), real(-0.5))
    beyond = add("Where", add("Less", x, real(2)), far, real(0))
    return add("Where", add("Less", x, real(1)), near, beyond)


def _bilinear(nodes: Nodes, x: str) -> str:
    """The triangle kernel, for x >= 0."""
    return nodes.add("Max", nodes.add("Sub", nodes.real(1), x), nodes.real(0))


_KERNELS: dict[str, Callable[[Nodes, str], str]] = {"bicubic": _bicubic, "bilinear": _bilinear}


def _cast(nodes: Nodes, name: str, dtype: Literal["DOUBLE", "UINT8"]) -> str:
    from onnx import TensorProto

    return nodes.add("Cast", name, to=getattr(TensorProto, dtype))
