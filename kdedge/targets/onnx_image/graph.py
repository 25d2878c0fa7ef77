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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

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
    """ONNX nodes and constants that are added in order.

    Attributes:
        nodes: the nodes, in order.
        constants: the constants, each once.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: Operand, output: str = "", **attributes: Any) -> Value:
        """Adds a node with one output, and returns this output.

        Numbers become constants: an `int` of shape [1], a `float` without axes.
        """
        from onnx import helper

        names = [self.constant(each).name for each in inputs]
        name = f"preprocess/{operator}_{len(self.nodes)}"
        node = helper.make_node(operator, names, [output or name], name=name, **attributes)
        self.nodes.append(node)
        return Value(self, output or name)

    def cast(self, value: Value, dtype: Literal["DOUBLE", "FLOAT", "UINT8"]) -> Value:
        """A value as numbers of another type."""
        from onnx import TensorProto

        return self.add("Cast", value, to=getattr(TensorProto, dtype))

    def constant(self, values: Operand) -> Value:
        """A constant; a value of the graph is returned unchanged."""
        from onnx import numpy_helper

        if isinstance(values, Value):
            return values
        array = np.array([values]) if isinstance(values, int) else np.asarray(values)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"preprocess/constant_{len(self._names)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return Value(self, self._names[key])


@dataclass(frozen=True)
class Value:
    """A value in a graph; arithmetic with it adds nodes."""

    nodes: Nodes
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.nodes.add("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.nodes.add("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.nodes.add("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        """The quotient; of integers, rounded toward 0."""
        return self.nodes.add("Div", self, other)


Operand: TypeAlias = Value | int | float | np.float32 | npt.NDArray[np.int64]


class Axis(NamedTuple):
    """One axis of the image; all lengths are int64 of shape [1].

    Attributes:
        side: its length.
        resized: its length after the resize.
        offset: where the crop begins in it.
    """

    side: Value
    resized: Value
    offset: Value


def add_preprocessing(nodes: Nodes, preprocess: Preprocess, order: Order) -> None:
    """Adds nodes from `IMAGE_NAME` to `PIXELS_NAME`, which compute `resize_and_crop`.

    Args:
        nodes: the list to which the nodes are added.
        preprocess: size, interpolation and resize mode.
        order: the order of the axes.
    """
    add = nodes.add
    size = preprocess.size_px
    image = Value(nodes, IMAGE_NAME)
    shape = add("Shape", image)
    height, width = add("Slice", shape, 0, 1), add("Slice", shape, 1, 2)
    # At least 1: if there are no pixels, a division by 0 would end the process
    shorter = add("Max", add("Min", height, width), 1)
    tall = _axis(nodes, height, shorter, preprocess)
    wide = _axis(nodes, width, shorter, preprocess)
    if order == "width first":
        first, second = wide, tall
        pixels = add("Transpose", image, perm=_WIDTH_FIRST)
    else:
        limit = add("Max", (width - wide.resized) * 2, 0)
        is_tall = add("Greater", height - tall.resized, limit)
        first = _where(is_tall, tall, wide)
        second = _where(is_tall, wide, tall)
        pixels = _transpose_by_size(nodes, is_tall)
    pixels = add("Reshape", pixels, add("Concat", first.side, -1, axis=0))  # [first, 3 * second]
    pixels = _resized(pixels, first, preprocess)  # [S, 3 * second]
    pixels = add("Reshape", pixels, add("Concat", 3 * size, second.side, axis=0))
    pixels = add("Transpose", pixels, perm=[1, 0])  # [second, S * 3]
    pixels = _resized(pixels, second, preprocess)  # [S, S * 3]
    square = add("Reshape", pixels, np.array([size, size, 3]))  # [second, first, 3]
    planes = add("Transpose", square, perm=[2, 0, 1])
    if order == "by size":
        planes = add("Where", is_tall, add("Transpose", square, perm=[2, 1, 0]), planes)
    add("Unsqueeze", planes, 0, output=PIXELS_NAME)


# [H, W, 3] -> first the axis that is resized first, then colors. Runtimes move a single axis fast:
# with colors last, ONNX Runtime needed half of its time for this step.
_WIDTH_FIRST = [1, 2, 0]
_HEIGHT_FIRST = [0, 2, 1]


def _transpose_by_size(nodes: Nodes, is_tall: Value) -> Value:
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


def _where(condition: Value, axis: Axis, otherwise: Axis) -> Axis:
    """The first axis if the condition is true, else the other one."""
    add = condition.nodes.add
    return Axis(
        side=add("Where", condition, axis.side, otherwise.side),
        resized=add("Where", condition, axis.resized, otherwise.resized),
        offset=add("Where", condition, axis.offset, otherwise.offset),
    )


def _axis(nodes: Nodes, side: Value, shorter: Value, preprocess: Preprocess) -> Axis:
    """The axis of a side; `shorter` is the shorter one of the image."""
    add = nodes.add
    size = preprocess.size_px
    if preprocess.resize_mode == "squash":
        return Axis(side, nodes.constant(size), nodes.constant(0))
    resized = add("Max", side * size / shorter, size)
    rest = resized - size
    half = rest / 2
    # Half of an odd number is rounded to the nearest even number, as in Python's `round`
    return Axis(side, resized, half + add("Mod", rest, 2) * add("Mod", half, 2))


def _resized(pixels: Value, axis: Axis, preprocess: Preprocess) -> Value:
    """Resizes and crops the first axis of bytes, which is `axis`: [side, K] -> [S, K]."""
    nodes = pixels.nodes
    window, weights = _window_and_weights(axis, preprocess)
    inputs = nodes.add("Gather", pixels, window, axis=0)  # [blocks, window, K]
    sums = nodes.add("MatMul", weights, nodes.cast(inputs, "DOUBLE"))  # [blocks, _BLOCK, K]
    values = nodes.add("Floor", sums * (1 / _WEIGHT_UNIT) + 0.5)
    values = nodes.cast(nodes.add("Clip", values, 0.0, 255.0), "UINT8")
    values = nodes.add("Reshape", values, np.array([_n_blocks(preprocess) * _BLOCK, -1]))
    return nodes.add("Slice", values, 0, preprocess.size_px, 0)


def _n_blocks(preprocess: Preprocess) -> int:
    return math.ceil(preprocess.size_px / _BLOCK)


def _window_and_weights(axis: Axis, preprocess: Preprocess) -> tuple[Value, Value]:
    """The inputs of each block, [blocks, window], and their weights, [blocks, _BLOCK, window].

    Output o has its center at (o + 1/2) side / resized. Input j is |(2j + 1) resized - (2o + 1)
    side| / (2 max(side, resized)) units of the kernel away from it.
    """
    side, resized, offset = axis
    nodes = side.nodes
    add = nodes.add
    larger = add("Max", side, resized)
    reach = larger * (2 * _SUPPORT[preprocess.interpolation])
    outputs = nodes.constant(np.arange(_n_blocks(preprocess) * _BLOCK).reshape(-1, _BLOCK, 1))
    centers = ((outputs + offset) * 2 + 1) * side  # (2o + 1) side
    width = add("Min", (side * (_BLOCK - 1) + reach) / resized + 2, side)
    start = (add("Slice", centers, 0, 1, 1) - reach + resized) / (resized * 2)
    # The window stays inside the image; pixels outside of the kernel have the weight 0
    start = add("Min", add("Max", start, 0), side - width)
    steps = add("Range", np.array(0), add("Squeeze", width), np.array(1))
    window = start + steps  # [blocks, 1, window]
    distance = add("Abs", (window * 2 + 1) * resized - centers)
    units = nodes.cast(distance, "DOUBLE") / nodes.cast(larger * 2, "DOUBLE")
    weights = _KERNELS[preprocess.interpolation](units)
    weights = weights / add("ReduceSum", weights, 2, keepdims=1)
    rounded = add("Floor", add("Abs", weights) * _WEIGHT_UNIT + 0.5)
    return add("Squeeze", window, 1), add("Sign", weights) * rounded


def _bicubic(x: Value) -> Value:
    """Keys' cubic convolution with a = -1/2 (IEEE ASSP 29, 1981, equation 15), for x >= 0."""
    add = x.nodes.add
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    beyond = add("Where", add("Less", x, 2.0), far, 0.0)
    return add("Where", add("Less", x, 1.0), near, beyond)


def _bilinear(x: Value) -> Value:
    """The triangle kernel, for x >= 0."""
    return x.nodes.add("Max", x * -1.0 + 1.0, 0.0)


_KERNELS: dict[str, Callable[[Value], Value]] = {"bicubic": _bicubic, "bilinear": _bilinear}
