"""Graphs of opset 18 become graphs of opset 17 with the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdedge.errors import RecipeError
from kdedge.targets.onnx.trace import OPSET, lower_opset

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

VALUES = np.random.default_rng(0).normal(size=(2, 7, 4, 4)).astype(np.float32)


def graph(*nodes: Any, outputs: int = 1, **constants: Any) -> Any:
    """A graph of opset 18 from `x` [batch, 7, 4, 4] to what the nodes give, `part 0`..."""
    helper = onnx.helper
    for index, node in enumerate(nodes):
        node.name = f"node {index}"
    ends = [helper.make_node("Flatten", [f"part {i}"], [f"y{i}"]) for i in range(outputs)]
    made = helper.make_graph(
        [*nodes, *ends],
        "kdedge",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 7, 4, 4])],
        [
            helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["rows", "columns"])
            for i in range(outputs)
        ],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: Any) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    found: list[np.ndarray] = session.run(None, {"x": VALUES})
    return found


def node(kind: str, inputs: list[str], n_outputs: int = 1, **attributes: Any) -> Any:
    outputs = [f"part {index}" for index in range(n_outputs)]
    return onnx.helper.make_node(kind, inputs, outputs, **attributes)


SIZES = np.array([0, 0, 1, 1, 0, 0, 1, 1])
CASES = {
    "mean": lambda: graph(node("ReduceMean", ["x", "axes"], keepdims=0), axes=[-1, -2]),
    "max": lambda: graph(node("ReduceMax", ["x", "axes"]), axes=[1]),
    "pad": lambda: graph(node("Pad", ["x", "sizes"]), sizes=SIZES),
    "resize": lambda: graph(
        node("Resize", ["x", "", "scales"], mode="nearest"), scales=np.float32([1, 1, 2, 2])
    ),
    "equal parts": lambda: graph(node("Split", ["x"], 2, axis=2, num_outputs=2), outputs=2),
    "unequal parts": lambda: graph(node("Split", ["x"], 3, axis=1, num_outputs=3), outputs=3),
    "given sizes": lambda: graph(node("Split", ["x", "s"], 2, axis=1), outputs=2, s=[3, 4]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_the_same_in_the_older_opset(case: str) -> None:
    model = CASES[case]()
    expected = run(model)
    lower_opset(model)
    assert [entry.version for entry in model.opset_import] == [OPSET]
    onnx.checker.check_model(model, full_check=True)
    for actual, one in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(actual, one)


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda: graph(node("Mish", ["x"])), "Mish"),
        (
            lambda: graph(
                node("Resize", ["x", "", "scales"], mode="linear", antialias=1),
                scales=np.float32([1, 1, 0.5, 0.5]),
            ),
            "Resize",
        ),
        (lambda: graph(node("Split", ["x"], 2, axis=0, num_outputs=2), outputs=2), "Split"),
    ],
)
def test_an_operator_without_an_equivalent_is_named(made: Any, kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"its node node 0 \({kind}\) has no equivalent in ONNX"):
        lower_opset(made())
