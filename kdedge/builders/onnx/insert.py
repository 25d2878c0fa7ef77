"""Writes explicit Q/DQ into a graph, with given scales and levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from kdedge.quantization.fake import QuantizedLayer
from kdedge.quantization.sites import FloatLinear, Site
from kdedge.targets.onnx.graph import (
    consumers,
    drop_unused,
    quantizer_pair,
    set_initializer,
    set_nodes,
    weight_dequantizer,
    weight_matmuls,
    wide_convs,
)


def quantizable(model: Any) -> dict[str, list[Any]]:
    """The encoder's linear layers and convolutions: layer -> its nodes, since it may run twice.

    A layer has the name of its module in the folded model: "blocks.0.query", "encoder.conv1".
    """
    nodes_by_layer: dict[str, list[Any]] = {}
    for node in (*weight_matmuls(model), *wide_convs(model)):
        nodes_by_layer.setdefault(layer_of(node), []).append(node)
    return nodes_by_layer


def layer_of(node: Any) -> str:
    """Name of the module that a node computes; empty for the model itself."""
    return str(node.name).rpartition("/")[0]


def insert_qdq(model: Any, layers: Mapping[str, QuantizedLayer]) -> None:
    """Inserts Q/DQ at the inputs of layers, and DQ at their weights, which become INT8.

    Layers that read one tensor with one scale share its Q/DQ. Weights of the graph are replaced by
    the levels, so only its other constants have to equal the quantized model's. If the input of a
    layer is centered, no other layer reads it.

    Args:
        model: a float32 graph of opset 19 or later; it is changed in place.
        layers: quantized layers by their names in `quantizable`; other layers stay float.
    """
    from onnx import helper

    chosen: dict[str, QuantizedLayer] = {}
    for name, nodes_of_layer in quantizable(model).items():
        if name in layers:
            chosen.update((node.name, layers[name]) for node in nodes_of_layer)
    dequantized: dict[tuple[str, float], str] = {}
    nodes: list[Any] = []
    for node in list(model.graph.node):
        layer = chosen.get(node.name)
        if layer is not None:
            read = node.input[0]
            key = (read, layer.input_scale)
            if key not in dequantized:
                n_before = len([tensor for tensor, _ in dequantized if tensor == read])
                name = read if n_before == 0 else f"{read}/{n_before + 1}"
                x = read
                if layer.center is not None:
                    x = f"{name}/centered"
                    set_initializer(model, f"{name}/center", layer.center)
                    inputs = [read, f"{name}/center"]
                    nodes.append(helper.make_node("Sub", inputs, [x], name=f"{name}/Sub"))
                nodes += quantizer_pair(model, x, name, layer.input_scale, np.int8(0))
                dequantized[key] = nodes[-1].output[0]
            axis = 0 if node.op_type == "Conv" else 1
            levels = layer.levels.swapaxes(0, axis)
            name = f"{layer_of(node)}/weight"
            output = f"{node.name}/weight"
            nodes.append(
                weight_dequantizer(
                    model, name, levels, layer.weight_scale, output=output, axis=axis
                )
            )
            node.input[0] = dequantized[key]
            node.input[1] = output
        nodes.append(node)
    set_nodes(model, nodes)
    drop_unused(model)


def _activation_before(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Name of the module right before a linear layer in a sequence, if it has no weights."""
    parent, _, last = name.rpartition(".")
    sequence = modules[parent]
    if not isinstance(sequence, nn.Sequential) or not isinstance(modules[name], nn.Linear):
        return None
    names = [child for child, _ in sequence.named_children()]
    index = names.index(last) - 1
    if index < 0 or next(sequence[index].parameters(), None) is not None:
        return None
    return f"{parent}.{names[index]}"


class NormReaders(NamedTuple):
    """A LayerNorm's node, and the nodes of the linear layers that read its output."""

    norm: Any
    readers: list[Any]


def norm_readers(model: Any) -> list[NormReaders]:
    """The LayerNorms whose outputs only linear layers read."""
    linear = {node.name for node in weight_matmuls(model)}
    read_by = consumers(model)
    nodes = []
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization":
            continue
        readers = read_by[norm.output[0]]
        slices = [node for node in readers if node.op_type == "Slice"]  # of the class token
        readers = [node for node in readers if node.op_type != "Slice"]
        for cut in slices:
            readers += read_by[cut.output[0]]
        if readers and all(node.name in linear for node in readers):
            nodes.append(NormReaders(norm, readers))
    return nodes


def find_sites(model: Any, folded: nn.Module) -> list[Site]:
    """The sites at which a folded model is quantized, in the order of its graph.

    Args:
        model: the float32 graph of the folded model.
        folded: the folded model. Nodes that are not one of its linear layers or convolutions, such
            as a block's own product with a weight, are left out.
    """
    modules = dict(folded.named_modules())
    input_of = {}
    for name, nodes in quantizable(model).items():
        module = modules.get(name)
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, FloatLinear):
            input_of[name] = nodes[0].input[0]
    sites = _sites_after_norms(model, modules, input_of)
    placed: set[str] = set()
    for site in sites:
        placed.update(site.layers)
    readers: dict[str, list[str]] = {}
    for name, tensor in input_of.items():
        if name not in placed:
            readers.setdefault(tensor, []).append(name)
    for names in readers.values():
        block, _, last = names[0].rpartition(".")
        has_values = last == "out" and hasattr(modules[block], "divide_values")
        activation = _activation_before(names[0], modules) if len(names) == 1 else None
        sites.append(Site(tuple(names), block=block if has_values else None, activation=activation))
    order = list(input_of)
    return sorted(sites, key=lambda site: order.index(site.layers[0]))


def _sites_after_norms(
    model: Any, modules: Mapping[str, nn.Module], layers: Container[str]
) -> list[Site]:
    """The sites after layer norms that only quantized layers read.

    A norm may run twice, such as for the queries of the last block; all its readers count.
    """
    calls = Counter(layer_of(n) for n in model.graph.node if n.op_type == "LayerNormalization")
    readers: dict[str, list[str]] = {}
    for norm, nodes in norm_readers(model):
        readers.setdefault(layer_of(norm), []).extend(layer_of(node) for node in nodes)
        calls[layer_of(norm)] -= 1
    sites = []
    for norm, names in readers.items():
        is_norm = isinstance(modules.get(norm), nn.LayerNorm) and calls[norm] == 0
        if is_norm and all(name in layers for name in names):
            sites.append(Site(tuple(dict.fromkeys(names)), norm=norm))
    return sites
