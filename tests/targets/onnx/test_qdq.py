"""The check of explicit Q/DQ: a good graph passes, each way to spoil it is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import GateError
from kdedge.targets.onnx.graph import set_initializer
from kdedge.targets.onnx.qdq import check_qdq

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LAYER = "blocks.1.key/MatMul"


@pytest.fixture
def graph(folded_int8: Path) -> Any:
    return onnx.load(folded_int8)


def node_named(model: Any, name: str) -> Any:
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def before(model: Any, node: Any, index: int) -> Any:
    """The node that gives an input of a node."""
    (found,) = (other for other in model.graph.node if node.input[index] in other.output)
    return found


def insert(model: Any, node: Any, *new: Any) -> None:
    """Puts nodes before a node."""
    at = [other.name for other in model.graph.node].index(node.name)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *new, *nodes[at:]])


def add_qdq(model: Any, name: str, index: int = 0) -> None:
    """Quantizes one input of a node."""
    node = node_named(model, name)
    scale, zero = f"{name}/{index}/s", f"{name}/{index}/z"
    set_initializer(model, scale, np.float16(0.1))
    set_initializer(model, zero, np.int8(0))
    q, dq = f"{name}/{index}/q", f"{name}/{index}/dq"
    pair = (
        onnx.helper.make_node("QuantizeLinear", [node.input[index], scale, zero], [q], name=q),
        onnx.helper.make_node("DequantizeLinear", [q, scale, zero], [dq], name=dq),
    )
    node.input[index] = dq
    insert(model, node_named(model, name), *pair)


def spoil_zero_point(model: Any) -> None:
    set_initializer(model, before(model, node_named(model, LAYER), 0).input[2], np.int8(3))


def spoil_weights_zero_point(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 1)
    set_initializer(model, dq.input[2], np.full(64, 1, np.int8))


def make_activations_unsigned(model: Any) -> None:
    set_initializer(model, before(model, node_named(model, LAYER), 0).input[2], np.uint8(0))


def drop_the_zero_point_that_makes_activations_signed(model: Any) -> None:
    quantizer = before(model, before(model, node_named(model, LAYER), 0), 0)
    del quantizer.input[2]


def give_weights_one_scale(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 1)
    set_initializer(model, dq.input[1], np.float16(0.1))


def give_weights_a_scale_for_each_input(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 1)
    (axis,) = (attribute for attribute in dq.attribute if attribute.name == "axis")
    axis.i = 0


def give_activations_a_scale_for_each_channel(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 0)
    set_initializer(model, dq.input[1], np.full(64, 0.1, np.float16))


def leave_the_input_float(model: Any) -> None:
    node = node_named(model, LAYER)
    node.input[0] = before(model, before(model, node, 0), 0).input[0]


def leave_the_weight_float(model: Any) -> None:
    set_initializer(model, "float", np.ones((64, 64), np.float16))
    node_named(model, LAYER).input[1] = "float"


def quantize_the_weight_at_run_time(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 1)
    set_initializer(model, "float", np.ones((64, 64), np.float16))
    inputs = ["float", *dq.input[1:]]
    insert(model, dq, onnx.helper.make_node("QuantizeLinear", inputs, ["late"], name="late"))
    before(model, node_named(model, LAYER), 1).input[0] = "late"


def store_weights_unsigned(model: Any) -> None:
    dq = before(model, node_named(model, LAYER), 1)
    set_initializer(model, dq.input[0], np.ones((64, 64), np.uint8))


def dequantize_without_quantizing(model: Any) -> None:
    before(model, before(model, node_named(model, LAYER), 0), 0).op_type = "Cast"


SPOILERS: dict[Callable[[Any], None], str] = {
    spoil_zero_point: "a zero point is not an INT8 zero",
    spoil_weights_zero_point: "a zero point is not an INT8 zero",
    make_activations_unsigned: "a zero point is not an INT8 zero",
    drop_the_zero_point_that_makes_activations_signed: "a zero point is not an INT8 zero",
    give_weights_one_scale: "its weights have no scale for each output channel",
    give_weights_a_scale_for_each_input: "its weights have no scale for each output channel",
    give_activations_a_scale_for_each_channel: "its input has more than one scale",
    leave_the_input_float: "no Q/DQ at its input",
    leave_the_weight_float: "no Q/DQ at its weight",
    quantize_the_weight_at_run_time: "its weights are not stored as INT8",
    store_weights_unsigned: "its weights are not stored as INT8",
    dequantize_without_quantizing: "its input has a DQ without a Q",
}


def test_a_good_graph_passes(graph: Any) -> None:
    check_qdq(graph)


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_linear_layer_that_is_not_quantized_as_it_has_to_be_is_named(
    graph: Any, spoil: Callable[[Any], None]
) -> None:
    spoil(graph)
    with pytest.raises(GateError, match=r"1[0-7] of 18 linear layers") as caught:
        check_qdq(graph)
    # What its input's Q/DQ does wrong is named by the first of the layers that share it
    layer = r"blocks\.1\.(query|key)/MatMul"
    assert re.search(f"{layer}: {SPOILERS[spoil]}", str(caught.value))
    assert "Export fp16 instead" in str(caught.value)


def test_a_graph_without_any_quantized_layer_is_refused(folded_graph: Any) -> None:
    with pytest.raises(GateError, match=r"0 of 18 .* blocks\.0\.query/MatMul: no Q/DQ at its"):
        check_qdq(folded_graph)


def test_a_graph_without_linear_layers_is_refused(graph: Any) -> None:
    kept = [node for node in graph.graph.node if node.op_type != "MatMul"]
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    with pytest.raises(GateError, match=r"0 of 0 .* are quantized; there are none"):
        check_qdq(graph)


@pytest.mark.parametrize(
    ("reader", "named"),
    [
        ("patch_conv/Conv", "patch_conv/Conv"),
        ("Reshape", "patch_conv/Conv"),  # its input is what the convolution gives
        ("features/Gemm", "Relu"),
        ("Div", "fused_head/Gemm"),
    ],
)
def test_a_convolution_or_head_beside_qdq_is_named(graph: Any, reader: str, named: str) -> None:
    add_qdq(graph, reader)
    with pytest.raises(GateError, match=f"{named} is quantized, but must stay float"):
        check_qdq(graph)


def test_a_head_with_quantized_weights_is_named(graph: Any) -> None:
    add_qdq(graph, "fused_head/Gemm", 1)
    with pytest.raises(GateError, match="fused_head/Gemm is quantized, but must stay float"):
        check_qdq(graph)


def test_attention_may_be_quantized_wholly_or_not_at_all(graph: Any) -> None:
    products = [f"blocks.{block}/{product}" for block in range(3) for product in (
        "MatMul", "MatMul_2")]  # fmt: skip
    for name in products:
        add_qdq(graph, name, 0)
        add_qdq(graph, name, 1)
        if name != products[-1]:
            with pytest.raises(
                GateError, match=r"of attention's 6 .* for example blocks\.0/MatMul"
            ):
                check_qdq(graph)
    check_qdq(graph)
