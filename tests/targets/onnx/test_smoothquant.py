"""SmoothQuant: equation 4 against a plain version of it, and that no float result changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.targets.onnx.graph import initializers, run_outputs
from kdedge.targets.onnx.smoothquant import SMOOTHING, smooth

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT32 = {"rtol": 0, "atol": 1e-4}
"""Sums in another order; logits here are up to 4."""

Run = Callable[[Path, np.ndarray], np.ndarray]


def node_named(model: Any, name: str) -> Any:
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def constant(model: Any, name: str) -> np.ndarray:
    return np.asarray(onnx.numpy_helper.to_array(initializers(model)[name]))


def replace(model: Any, name: str, values: np.ndarray) -> None:
    initializers(model)[name].CopyFrom(onnx.numpy_helper.from_array(values, name))


def channel_maxima(model: Any, norm: str, images: np.ndarray) -> np.ndarray:
    """Largest magnitude of each channel that a LayerNormalization gives, over the images."""
    (output,) = node_named(model, norm).output
    values = np.concatenate([values for (values,) in run_outputs(model, [output], images)])
    return np.asarray(np.abs(values).max(axis=(0, 1)))


def input_maxima(model: Any, *matmuls: str) -> np.ndarray:
    """Largest magnitude of what multiplies each input channel, over the layers."""
    weights = [constant(model, node_named(model, name).input[1]) for name in matmuls]
    return np.asarray(np.abs(np.concatenate(weights, axis=1)).max(axis=1))


QKV = [f"blocks.1.{part}/MatMul" for part in ("query", "key", "value")]


def logits_of(model: Any, images: np.ndarray, run: Run, tmp_path: Path) -> np.ndarray:
    onnx.save(model, tmp_path / "model.onnx")
    return run(tmp_path / "model.onnx", images)


def eight_bit_error(model: Any, norm: str, matmul: str, images: np.ndarray) -> float:
    """Relative error of a product with eight bits an input, one scale, and a scale each output."""
    (output,) = node_named(model, norm).output
    x = np.concatenate([values for (values,) in run_outputs(model, [output], images)])
    weight = constant(model, node_named(model, matmul).input[1])
    steps = np.abs(x).max() / 127, np.abs(weight).max(axis=0) / 127
    rounded = (steps[0] * np.rint(x / steps[0])) @ (steps[1] * np.rint(weight / steps[1]))
    return float(np.linalg.norm(rounded - x @ weight) / np.linalg.norm(x @ weight))


@pytest.mark.parametrize("strength", [0.0, SMOOTHING, 1.0])
def test_no_logit_changes(
    folded_graph: Any, folded_images: np.ndarray, folded_run: Run, tmp_path: Path, strength: float
) -> None:
    expected = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    smooth(folded_graph, folded_images, strength=strength)
    actual = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    np.testing.assert_allclose(actual, expected, **FLOAT32)


def test_factors_are_those_of_equation_4(folded_graph: Any, folded_images: np.ndarray) -> None:
    node, norm = node_named(folded_graph, QKV[0]), "blocks.1.ln_1/LayerNormalization"
    weight, gain = (
        constant(folded_graph, node.input[1]),
        constant(folded_graph, node_named(folded_graph, norm).input[1]),
    )
    factors = channel_maxima(folded_graph, norm, folded_images) ** SMOOTHING / input_maxima(
        folded_graph, *QKV
    ) ** (1 - SMOOTHING)
    smooth(folded_graph, folded_images)
    np.testing.assert_allclose(
        constant(folded_graph, node.input[1]), weight * factors[:, None], rtol=1e-4
    )
    np.testing.assert_allclose(
        constant(folded_graph, node_named(folded_graph, norm).input[1]), gain / factors, rtol=1e-4
    )


@pytest.mark.parametrize("norm", ["blocks.1.ln_1", "blocks.2.ln_1", "blocks.2.ln_2"])
def test_half_way_activations_and_weights_have_the_same_range_in_each_channel(
    folded_graph: Any, folded_images: np.ndarray, norm: str
) -> None:
    block, part = norm.split(".ln_")
    parts = ("query", "key", "value") if part == "1" else ("mlp.c_fc",)
    names = [f"{block}.{name}/MatMul" for name in parts]
    layer = f"{norm}/LayerNormalization"
    before = channel_maxima(folded_graph, layer, folded_images)
    smooth(folded_graph, folded_images, strength=0.5)
    after = channel_maxima(folded_graph, layer, folded_images)
    np.testing.assert_allclose(after, input_maxima(folded_graph, *names), rtol=1e-3)
    assert after.max() / after.min() < 0.8 * before.max() / before.min()


def test_the_ends_of_strength_make_all_channels_of_one_side_alike(
    folded_graph: Any, folded_images: np.ndarray
) -> None:
    norm = "blocks.1.ln_1/LayerNormalization"
    smooth(folded_graph, folded_images, strength=1.0)
    np.testing.assert_allclose(channel_maxima(folded_graph, norm, folded_images), 1, rtol=1e-4)
    smooth(folded_graph, folded_images, strength=0.0)
    np.testing.assert_allclose(input_maxima(folded_graph, *QKV), 1, rtol=1e-4)


def test_a_channel_that_is_far_larger_than_the_others_costs_much_less_after_it(
    folded_graph: Any, folded_images: np.ndarray
) -> None:
    norm = "blocks.1.ln_1/LayerNormalization"
    factors = np.where(np.arange(64) == 5, np.float32(50), np.float32(1))
    for name in node_named(folded_graph, norm).input[1:]:
        replace(folded_graph, name, constant(folded_graph, name) * factors)
    for layer in QKV:
        (name,) = node_named(folded_graph, layer).input[1:]
        replace(folded_graph, name, constant(folded_graph, name) / factors[:, None])
    before = eight_bit_error(folded_graph, norm, QKV[1], folded_images)
    smooth(folded_graph, folded_images)
    assert eight_bit_error(folded_graph, norm, QKV[1], folded_images) < 0.2 * before


def test_what_follows_no_block_normalization_keeps_its_weights(
    folded_graph: Any, folded_onnx: Path, folded_images: np.ndarray
) -> None:
    before = onnx.load(folded_onnx)
    smooth(folded_graph, folded_images)
    names = ["ln_pre/LayerNormalization", "patch_conv/Conv", "hidden/Gemm", "fused_head/Gemm"]
    names += ["blocks.0.out/MatMul", "blocks.0.mlp.c_proj/MatMul"]
    for name in names:
        new, old = node_named(folded_graph, name), node_named(before, name)
        assert list(new.input) == list(old.input)
        for constant_name in set(new.input) & set(initializers(before)):
            np.testing.assert_array_equal(
                constant(folded_graph, constant_name), constant(before, constant_name)
            )


def test_constants_that_layers_share_are_changed_for_each_by_itself(
    folded_graph: Any, folded_images: np.ndarray, folded_run: Run, tmp_path: Path
) -> None:
    first = node_named(folded_graph, "blocks.0.ln_1/LayerNormalization")
    for name in ("blocks.0.ln_2", "blocks.1.ln_1", "blocks.2.ln_2"):
        node_named(folded_graph, f"{name}/LayerNormalization").input[1:] = first.input[1:]
    query, key = (node_named(folded_graph, f"blocks.1.{part}/MatMul") for part in ("query", "key"))
    key.input[1] = query.input[1]
    expected = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    smooth(folded_graph, folded_images)
    actual = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    np.testing.assert_allclose(actual, expected, **FLOAT32)


@pytest.mark.parametrize(
    "nodes", [["blocks.1.ln_1/LayerNormalization"], QKV], ids=["always zero", "read by no layer"]
)
def test_a_channel_without_a_range_on_one_side_stays_finite(
    folded_graph: Any,
    folded_images: np.ndarray,
    folded_run: Run,
    tmp_path: Path,
    nodes: list[str],
) -> None:
    for name in (name for node in nodes for name in node_named(folded_graph, node).input[1:]):
        values = constant(folded_graph, name).copy()
        values[5] = 0
        replace(folded_graph, name, values)
    expected = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    smooth(folded_graph, folded_images)
    actual = logits_of(folded_graph, folded_images, folded_run, tmp_path)
    np.testing.assert_allclose(actual, expected, **FLOAT32)
