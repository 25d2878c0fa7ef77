"""Precision of the layers of a parsed network and of a built engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.runtime.artifact import Precision
from kdedge.targets.protocol import HEAD_LAYERS

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")

# Operators that may be between a dequantization and its product, and change no value
_SHAPE_ONLY = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


@dataclass(frozen=True)
class Product:
    """A matrix product or a convolution of a network.

    Attributes:
        name: name of its layer, and of its node in the ONNX file.
        type: type of its operands, as TensorRT names it: FLOAT, HALF.
        is_int8: whether both operands come from 8-bit integers, so that it can run in INT8.
    """

    name: str
    type: str
    is_int8: bool = False


def find_products(network: Any) -> list[Product]:
    """The matrix products and convolutions of a parsed network."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }

    def stored_type(tensor: Any) -> str | None:
        layer = makers.get(tensor.name)
        while layer is not None and layer.type.name in _SHAPE_ONLY:
            layer = makers.get(layer.get_input(0).name)
        if layer is None or layer.type.name != "DEQUANTIZE":
            return None
        return str(layer.get_input(0).dtype.name)

    products = []
    for layer in layers:
        if layer.type.name not in _PRODUCTS:
            continue
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        operands = [tensor for tensor in inputs if tensor is not None][:2]
        stored = {stored_type(tensor) for tensor in operands} if len(operands) == 2 else {None}
        products.append(Product(layer.name, operands[0].dtype.name, None not in stored))
    return products


def count_types(products: Sequence[Product]) -> dict[str, int]:
    """Number of products by type: INT8, HALF, FLOAT."""
    return dict(Counter("INT8" if item.is_int8 else item.type for item in products))


def check_precision(products: Sequence[Product], precision: Precision, path: Path) -> None:
    """Checks that a graph has the requested precision.

    TensorRT builds the precision of the file: a float32 file gives a float32 engine without a
    warning. The head may stay in float32, and so may single layers that would overflow.

    Args:
        products: products of the whole network.
        precision: the requested precision.
        path: the ONNX file, for the message.

    Raises:
        DataError: the graph has another precision.
    """
    body = [item for item in products if not item.name.startswith(HEAD_LAYERS)]
    in_int8 = [item for item in products if item.is_int8]
    in_float = [item for item in body if item.type == "FLOAT"]
    if precision == "fp32":
        wrong = [item for item in products if item.is_int8 or item.type != "FLOAT"]
    elif precision == "fp16" and in_int8:
        wrong = in_int8
    elif precision == "int8" and not in_int8:
        wrong = body or list(products)
    else:  # in an INT8 graph, the type is that of the other layers
        wrong = in_float if 2 * len(in_float) >= len(body) else []
    if wrong:
        raise _wrong_precision(wrong, len(products), precision, path)


def _wrong_precision(
    wrong: Sequence[Product], n_products: int, precision: Precision, path: Path
) -> DataError:
    first = wrong[0]
    found = {"HALF": "half precision", "FLOAT": "float32"}.get(first.type, first.type)
    if first.is_int8:
        found = f"8-bit integers and {found}"
    if precision == "fp32":
        file, option = "model.onnx", ""
    else:
        file, option = f"model.{precision}.onnx", f" with --{precision}"
    return DataError(
        f"{path} is not {precision}: {len(wrong)} of {n_products} layers have another precision,"
        f" for example {first.name} ({found}).\n"
        f"  TensorRT builds the precision of the file. Use {file}, which `kdedge export`"
        f" writes{option}."
    )


def summarize_layers(information: str) -> dict[str, Any] | None:
    """Counts an engine's layers.

    Args:
        information: the inspector's JSON. Layers are objects in engines that were built with
            detailed verbosity, otherwise names.

    Returns:
        `types`: number of layers by type. `fused_attention`: number of layers that are one kernel
        for a whole attention: their names or kernels have "mha". None if it is no JSON object.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    entries = [layer if isinstance(layer, dict) else {"Name": layer} for layer in layers]
    names = [f"{entry.get('Name')} {entry.get('TacticName')}".lower() for entry in entries]
    return {
        "types": dict(Counter(str(entry.get("LayerType", "unknown")) for entry in entries)),
        "fused_attention": sum("mha" in name for name in names),
    }
