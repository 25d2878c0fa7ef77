"""Checks that a graph with explicit Q/DQ is quantized as TensorRT requires."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kdedge.errors import GateError
from kdedge.targets.onnx.graph import MIN_CHANNELS, consumers, head_nodes, initializers
from kdedge.targets.onnx.insert import layer_of

_INT8 = 3  # onnx.TensorProto.INT8


def check_qdq(model: Any, *, in_float: Collection[str] = ()) -> None:
    """Checks that a graph is quantized as TensorRT requires.

    Each of the encoder's linear products and wide convolutions has Q/DQ at its input (one scale)
    and DQ at its INT8 weights (one scale per output channel), with zero points that are signed and
    0. Other convolutions and the head have no Q/DQ. Of attention's products, all have them or none.

    Args:
        model: the graph.
        in_float: names of layers that have no Q/DQ, as `insert.layer_of` gives them.

    Raises:
        GateError: the graph is quantized otherwise; the message names the first node.
    """
    found = _Findings(model)
    head = head_nodes(model)
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.name not in head
    ]
    linear = [node for node in products if not found.is_activation(node.input[1])]
    wide = {node.name for node in found.wide_convs()}
    linear += [node for node in model.graph.node if node.name in wide]
    left_out = {node.name for node in linear if layer_of(node) in in_float}
    linear = [node for node in linear if node.name not in left_out]
    quantized = [node for node in linear if found.fault(node) is None]
    if not (linear or left_out) or len(quantized) < len(linear):
        first = next((node for node in linear if found.fault(node)), None)
        detail = f"{first.name}: {found.fault(first)}" if first is not None else "there are none"
        raise _unfit(
            f"{len(quantized)} of {len(linear)} linear layers and convolutions are quantized;"
            f" {detail}"
        )
    for node in model.graph.node:
        is_narrow = node.op_type == "Conv" and node.name not in wide
        is_float = is_narrow or node.name in head
        if (is_float and found.touches(node)) or (node.name in left_out and found.reads(node)):
            raise _unfit(f"{node.name} is quantized, but must stay float")
    attention = [node for node in products if found.is_activation(node.input[1])]
    touched = [node.name for node in attention if found.touches(node)]
    if len(touched) not in (0, len(attention)):
        raise _unfit(
            f"{len(touched)} of attention's {len(attention)} products are quantized, for example"
            f" {touched[0]}"
        )


def _unfit(reason: str) -> GateError:
    return GateError(
        f"INT8: the graph is not quantized as TensorRT requires: {reason}.\n  Export fp16 instead."
    )


class _Findings:
    """The Q/DQ around the nodes of a graph."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._constants = initializers(model)
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._consumers = consumers(model)

    def _dequantizer(self, name: str) -> Any:
        node = self._producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def is_activation(self, name: str) -> bool:
        """Whether a tensor depends on the image, quantized or not."""
        node = self._dequantizer(name)
        while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            name = node.input[0]
            node = self._producers.get(name)
        return name not in self._constants

    def wide_convs(self) -> list[Any]:
        """The convolutions that must be quantized."""
        return [
            node
            for node in self._model.graph.node
            if node.op_type == "Conv" and self._n_channels(node.input[1]) >= MIN_CHANNELS
        ]

    def _n_channels(self, weight: str) -> int:
        """Input channels (per group) of a convolution's weight, quantized or not; 0 if computed."""
        dequantizer = self._dequantizer(weight)
        tensor = self._constants.get(weight if dequantizer is None else dequantizer.input[0])
        return 0 if tensor is None else int(tensor.dims[1])

    def touches(self, node: Any) -> bool:
        """Whether a node reads a DQ, or is read by a Q of something else than a product."""
        readers = self._readers(node)
        return self.reads(node) or any(
            reader.op_type == "QuantizeLinear" and not self._feeds_products(reader)
            for reader in readers
        )

    def reads(self, node: Any) -> bool:
        """Whether a node reads a DQ."""
        return any(self._dequantizer(name) for name in node.input)

    def _feeds_products(self, quantizer: Any) -> bool:
        readers = [node for dq in self._readers(quantizer) for node in self._readers(dq)]
        return all(node.op_type in ("MatMul", "Conv") for node in readers)

    def _readers(self, node: Any) -> list[Any]:
        return [reader for name in node.output for reader in self._consumers.get(name, [])]

    def fault(self, node: Any) -> str | None:
        """What is wrong with a linear product's or a convolution's Q/DQ, or None."""
        x, weight = (self._dequantizer(name) for name in node.input[:2])
        if x is None or weight is None:
            return f"no Q/DQ at its {'input' if x is None else 'weight'}"
        values = self._constants.get(weight.input[0])
        if values is None or values.data_type != _INT8:
            return "its weights are not stored as INT8"
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1) % len(values.dims)
        expected = 0 if node.op_type == "Conv" else 1
        if axis != expected or self._shape(weight.input[1]) != [values.dims[expected]]:
            return "its weights have no scale for each output channel"
        quantizer = self._producers.get(x.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            return "its input has a DQ without a Q"
        if any(self._shape(part.input[1]) not in ([], [1]) for part in (quantizer, x)):
            return "its input has more than one scale"
        if not all(self._is_symmetric(part) for part in (quantizer, x, weight)):
            return "a zero point is not an INT8 zero"
        return None

    def _shape(self, name: str) -> list[int] | None:
        """Shape of a constant; None for other tensors."""
        tensor = self._constants.get(name)
        return None if tensor is None else list(tensor.dims)

    def _is_symmetric(self, node: Any) -> bool:
        """Whether a Q or DQ has the zero point 0; a Q without zero point gives unsigned bytes."""
        from onnx import numpy_helper

        if len(node.input) < 3:
            return bool(node.op_type == "DequantizeLinear")
        zero = self._constants.get(node.input[2])
        if zero is None or zero.data_type != _INT8:
            return False
        return not numpy_helper.to_array(zero).any()
