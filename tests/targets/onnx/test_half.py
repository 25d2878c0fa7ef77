"""FP16 files: which parts are half precision, and that answers stay those of float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.targets.onnx.graph import head_nodes, initializers, load_graph, set_initializer
from kdedge.targets.onnx.half import LIMIT, absolute_maxima, convert, to_fp16

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT, HALF = 1, 10

TOLERANCE = 0.05
"""Of logits up to 8, whose 11 bits end at 0.004, through three blocks."""

Types = Callable[[Any], dict[str, int]]
Run = Callable[[Path, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def half_path(folded_runtime_files: dict[str, Path]) -> Path:
    return folded_runtime_files["fp16"]


@pytest.fixture
def half(half_path: Path) -> Any:
    return onnx.load(half_path)


def nodes_of(model: Any, *op_types: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type in op_types]


def node_types(node: Any, types: dict[str, int]) -> set[int]:
    return {types[name] for name in (*node.input, *node.output) if name}


def node_named(model: Any, name: str) -> Any:
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def test_every_product_and_convolution_of_the_blocks_is_fp16_with_fp16_weights(
    half: Any, folded_types: Types
) -> None:
    types, head = folded_types(half), head_nodes(half)
    products = [node for node in nodes_of(half, "MatMul", "Conv") if node.name not in head]
    assert len(products) == 1 + 3 * 8
    for node in products:
        assert node_types(node, types) == {HALF}, node.name
    stored = initializers(half)
    assert stored[node_named(half, "patch_conv/Conv").input[1]].data_type == HALF
    assert stored[node_named(half, "blocks.0.query/MatMul").input[1]].data_type == HALF


def test_normalization_and_softmax_take_and_give_fp16_with_statistics_in_float32(
    half: Any, folded_graph: Any, folded_types: Types
) -> None:
    types = folded_types(half)
    norms = nodes_of(half, "LayerNormalization")
    assert [node.name for node in norms] == [
        node.name for node in nodes_of(folded_graph, "LayerNormalization")
    ]
    for node in norms:
        stash = [attribute.i for attribute in node.attribute if attribute.name == "stash_type"]
        assert stash in ([], [FLOAT]), node.name
    for node in (*norms, *nodes_of(half, "Softmax")):
        assert node_types(node, types) == {HALF}, node.name


def test_the_head_is_float32_with_the_weights_that_it_had(
    half: Any, folded_graph: Any, folded_types: Types
) -> None:
    types, before, after = folded_types(half), initializers(folded_graph), initializers(half)
    for name in ("hidden/Gemm", "fused_head/Gemm", "features/Gemm", "Div"):
        assert node_types(node_named(half, name), types) == {FLOAT}, name
    for name in ("hidden/Gemm", "fused_head/Gemm", "features/Gemm"):
        for old, new in zip(
            node_named(folded_graph, name).input[1:],
            node_named(half, name).input[1:],
            strict=True,
        ):
            assert after[new].raw_data == before[old].raw_data


def test_float32_is_cast_before_the_first_node_and_before_the_head(half: Any) -> None:
    first, last = nodes_of(half, "Cast")
    (norm,) = (n for n in nodes_of(half, "LayerNormalization") if n.name.startswith("ln_post"))
    assert list(first.input) == ["images"]
    assert list(last.input) == list(norm.output)
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT, value.name


def test_the_file_holds_no_weight_twice(half_path: Path, folded_onnx: Path) -> None:
    stored = initializers(load_graph(half_path))
    read = {name for node in load_graph(half_path).graph.node for name in node.input}
    assert stored.keys() <= read
    assert half_path.stat().st_size < 0.55 * folded_onnx.stat().st_size


def test_logits_and_ranking_stay_those_of_float32(
    half_path: Path, folded_onnx: Path, folded_images: np.ndarray, folded_run: Run
) -> None:
    expected = folded_run(folded_onnx, folded_images)
    actual = folded_run(half_path, folded_images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    assert len(set(expected.argmax(axis=1))) > 2  # or every file would agree
    np.testing.assert_array_equal(actual.argmax(axis=1), expected.argmax(axis=1))
    ranked = np.take_along_axis(actual, expected.argsort(axis=1), axis=1)
    is_clear = np.diff(np.sort(expected, axis=1)) > TOLERANCE
    assert is_clear.mean() > 0.9
    assert (np.diff(ranked)[is_clear] > 0).all()


def test_bytes_go_in_where_the_graph_takes_bytes(
    folded_export: Callable[..., Path], folded_images: np.ndarray, folded_run: Run, tmp_path: Path
) -> None:
    source, images = folded_export(pixels="uint8"), (255 * folded_images).astype(np.uint8)
    to_fp16(source, tmp_path / "half.onnx", images=images)
    model = onnx.load(tmp_path / "half.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert len(nodes_of(model, "Cast")) == 2  # from bytes, and before the head
    actual, expected = (folded_run(path, images) for path in (tmp_path / "half.onnx", source))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_maxima_are_the_largest_magnitude_over_every_image(
    folded_graph: Any, folded_images: np.ndarray
) -> None:
    together = absolute_maxima(folded_graph, folded_images)
    alone = [absolute_maxima(folded_graph, folded_images[i : i + 1]) for i in range(24)]
    for name in ("conv2d", "layer_norm", "logits"):
        expected = max(maxima[name] for maxima in alone)
        assert together[name] == pytest.approx(expected, rel=1e-5)
        assert min(maxima[name] for maxima in alone) < 0.95 * expected


def test_only_nodes_that_see_a_channel_beyond_fp16_stay_float32_and_answers_stay_right(
    folded_large_channel: Path,
    folded_images: np.ndarray,
    folded_run: Run,
    folded_types: Types,
    tmp_path: Path,
) -> None:
    expected = folded_run(folded_large_channel, folded_images)
    trusted = onnx.load(folded_large_channel)
    convert(trusted, {})
    onnx.save(trusted, tmp_path / "trusted.onnx")
    assert np.isnan(folded_run(tmp_path / "trusted.onnx", folded_images)).all()
    to_fp16(folded_large_channel, tmp_path / "measured.onnx", images=folded_images)
    actual = folded_run(tmp_path / "measured.onnx", folded_images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)

    model = onnx.load(tmp_path / "measured.onnx")
    types = folded_types(model)
    maxima = absolute_maxima(onnx.load(folded_large_channel), folded_images)
    large = {name for name, highest in maxima.items() if highest > LIMIT}
    assert maxima["val_71"] > 1e5
    assert 5 < len(large) < 20
    assert {types[name] for name in large} == {FLOAT}
    for name in ("blocks.0.mlp.c_fc/MatMul", "blocks.1.query/MatMul", "blocks.2.mlp.c_fc/MatMul"):
        assert node_types(node_named(model, name), types) == {HALF}, name
    assert node_types(node_named(model, "blocks.1.ln_1/LayerNormalization"), types) == {FLOAT}


@pytest.mark.parametrize(
    ("value", "is_rare", "expected"),
    [
        *((value, False, FLOAT) for value in (1e5, 2e4, -2e4, 1e-7)),
        (1e-7, True, HALF),  # a few small ones among ordinary ones are rounded
    ],
)
def test_weights_that_fp16_cannot_hold_stay_float32(
    folded_graph: Any, folded_types: Types, value: float, is_rare: bool, expected: int
) -> None:
    node = node_named(folded_graph, "blocks.1.query/MatMul")
    weight = np.ones((64, 64), np.float32)
    weight[: 1 if is_rare else 64] = value
    set_initializer(folded_graph, node.input[1], weight)
    convert(folded_graph, {})
    types = folded_types(folded_graph)
    assert node_types(node, types) == {expected}
    assert node_types(node_named(folded_graph, "blocks.1.key/MatMul"), types) == {HALF}
    if expected == FLOAT:
        stored = onnx.numpy_helper.to_array(initializers(folded_graph)[node.input[1]])
        np.testing.assert_array_equal(stored, weight)


@pytest.mark.parametrize(("scale", "expected"), [(127.0, HALF), (129.0, FLOAT)])
def test_bytes_whose_largest_value_fp16_cannot_hold_are_dequantized_in_float32(
    folded_graph: Any, folded_types: Types, scale: float, expected: int
) -> None:
    node = node_named(folded_graph, "blocks.1.query/MatMul")
    set_initializer(folded_graph, "scale", np.float32(scale))
    set_initializer(folded_graph, "zero", np.int8(0))
    pair = [
        onnx.helper.make_node("QuantizeLinear", [node.input[0], "scale", "zero"], ["q"], name="q"),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
    ]
    place = list(folded_graph.graph.node).index(node)
    for new in reversed(pair):
        folded_graph.graph.node.insert(place, new)
    folded_graph.graph.node[place + 2].input[0] = "dq"
    folded_graph.opset_import[0].version = 19
    convert(folded_graph, {})
    dequantizer = node_named(folded_graph, "dq")
    assert folded_types(folded_graph)[dequantizer.output[0]] == expected


def test_the_same_file_comes_out_twice(
    folded_onnx: Path, half_path: Path, folded_images: np.ndarray, tmp_path: Path
) -> None:
    to_fp16(folded_onnx, tmp_path / "again.onnx", images=folded_images)
    assert (tmp_path / "again.onnx").read_bytes() == half_path.read_bytes()
