"""Fake quantization: rounding by a slow version, and against ONNX Runtime's Q/DQ."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdedge.quantization.fake import (
    QuantizedLayer,
    attach,
    fake_quantize,
    round_scale,
    weight_levels,
    weight_scale,
)

VALUES = [-9.0, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 63.4, 63.75, 64.0, 1e6]
"""In steps of 0.5: halves go to the even level, and both ends saturate."""


def test_halves_go_to_the_even_level_and_ends_saturate() -> None:
    scale = torch.tensor(0.5)
    levels = fake_quantize(torch.tensor(VALUES), scale) / scale
    assert levels.tolist() == [-18, -2, 0, 0, 0, 2, 2, 127, 127, 127, 127]
    assert fake_quantize(torch.tensor(-1e6), scale) == -64


def test_onnx_runtime_quantizes_to_the_same_values() -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    x = (np.random.default_rng(0).standard_normal(100_000) * 40).astype(np.float32)
    x[:2000] = 0.3 * np.float32(np.arange(-1000, 1000) + 0.5)  # near and on halves
    scale = np.float32(0.3)
    parts = {"s": scale, "z": np.int8(0)}
    constants = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in parts.items()]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    actual = fake_quantize(torch.from_numpy(x), torch.tensor(scale))
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_each_channels_largest_weight_has_the_last_level_and_a_dead_channel_gives_zeros() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    scale = weight_scale(weight)
    levels = weight_levels(weight, scale)
    assert levels.flatten(1).abs().amax(dim=1).tolist() == [127, 127, 0, 127, 127, 127]
    assert torch.equal(scale, scale.half().float())
    error = (levels * scale.reshape(-1, 1, 1, 1) - weight).abs().flatten(1).amax(dim=1)
    assert (error <= 0.51 * scale + 127 * scale * 2.0**-11).all()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_a_stored_scale_is_a_positive_number_of_fp16(value: float) -> None:
    scale = round_scale(torch.tensor(value))
    assert 0 < float(scale.half()) < float("inf")
    assert float(scale.half()) == float(scale)


def layers_of(model: nn.Module, names: list[str]) -> dict[str, QuantizedLayer]:
    found = {}
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        scale = weight_scale(weight)
        found[name] = QuantizedLayer(
            float(round_scale(torch.tensor(0.05))),
            scale.numpy(),
            weight_levels(weight, scale).numpy(),
        )
    return found


NAMES = ["blocks.0.query", "blocks.1.mlp.c_fc", "blocks.2.mlp.c_proj"]


def test_a_quantized_layer_is_the_product_written_out(images: np.ndarray) -> None:
    layer = nn.Linear(32, 8)
    x = torch.from_numpy(images[0, 0])
    levels = weight_levels(layer.weight, scale := weight_scale(layer.weight))
    expected_weight = levels * scale[:, None]
    expected = (x / 0.02).round().clamp(-128, 127) * 0.02 @ expected_weight.T + layer.bias
    model = nn.Sequential(layer)
    attach(model, {"0": QuantizedLayer(0.02, scale.numpy(), levels.numpy())})
    torch.testing.assert_close(model(x), expected)


def run_as_written(model: Any, images: np.ndarray) -> np.ndarray:
    """Logits, without ONNX Runtime's products of bytes: without VNNI, their sums saturate."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": images})
    return logits


def test_the_written_file_computes_what_the_model_computes(
    folded: Any, images: np.ndarray, tmp_path: Path
) -> None:
    """With a float32 rest it is equal; with an FP16 rest it loses as much as the model."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from kdedge.builders.onnx.insert import insert_qdq, quantizable
    from kdedge.builders.onnx.quantize import to_int8
    from kdedge.builders.onnx.trace import write_onnx
    from kdedge.targets.onnx.graph import load_graph

    model, batch = copy.deepcopy(folded), torch.from_numpy(images)
    plain = model(batch).detach().numpy()
    name, center = NAMES[-1], np.linspace(0, 0.3, 256, dtype=np.float32)
    layer = model.get_submodule(name)
    layer.bias.data += layer.weight.data @ torch.from_numpy(center)
    write_onnx(model, tmp_path / "float.onnx", size_px=32, batches=(len(images),) * 2)
    names = list(quantizable(load_graph(tmp_path / "float.onnx")))
    assert len(names) == 18
    layers = layers_of(model, names)
    layers[name] = dataclasses.replace(layers[name], center=center)
    attach(model, layers)
    expected = model(batch).detach().numpy()

    graph = onnx.version_converter.convert_version(onnx.load(tmp_path / "float.onnx"), 19)
    insert_qdq(graph, layers)
    exact = run_as_written(graph, images)
    to_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", calibration=images, layers=layers)
    half = run_as_written(onnx.load(tmp_path / "int8.onnx"), images)

    lost = np.abs(plain - expected).mean()  # by INT8
    # Equal but for images where a value in the middle of two levels was rounded the other way
    assert np.median(np.abs(exact - expected).max(axis=1)) < 1e-3 * lost
    assert np.abs(exact - expected).mean() < 0.1 * lost
    # FP16's roundings carry some values over the middle of two levels: other errors, as large
    assert np.abs(half - plain).mean() < 1.5 * lost
