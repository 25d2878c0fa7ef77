"""LiteRT's files: which layers are in eight bits, and by which ranges."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.native_lines import ANY_LINE, silenced
from kdedge.runtime.artifact import Artifact
from kdedge.targets.base import BuildRequest

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

pytest.importorskip("litert_torch")
torch = pytest.importorskip("torch")

from kdedge.builders import litert as target  # noqa: E402
from kdedge.targets.litert import TARGET, run  # noqa: E402

LINEAR = ("query", "key", "value", "out", "c_fc", "c_proj")


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def layer_names(data: bytes) -> set[str]:
    """The last named part of each layer that becomes INT8."""
    names = [
        re.findall(r"(?:Linear|Conv2d)_(\w+);", scope) for _, scope in target.quantized_layers(data)
    ]
    assert len({name[-1] for name in names}) == len(names)
    return {name[-1] for name in names}


def test_only_the_blocks_linear_layers_are_quantized(
    block_copy: Artifact, block_model: FoldedModel
) -> None:
    with silenced(ANY_LINE):
        path = block_copy.path / "model.tflite"
        data = target.converted(BuildRequest(block_copy, path, model=block_model))
    assert layer_names(data) == set(LINEAR)


def test_a_convolutions_range_is_that_of_all_calibration_images(
    block_copy: Artifact, cnn_model: Any
) -> None:
    images = (255 * draw_images(8)).astype(np.uint8)
    fixed = dataclasses.replace(block_copy, batch=2, max_batch=2, pixels="uint8")
    file = TARGET.plan("int8")
    request = BuildRequest(fixed, block_copy.path / file.name, model=cnn_model, images=images)
    with silenced(ANY_LINE):  # neither the first convolution, nor depthwise ones, nor the head
        assert layer_names(target.converted(request)) == {"second"}
    target.build(file, request)
    largest = float(cnn_model.before_second(torch.from_numpy(images)).max())  # 0 is the least
    tools = pytest.importorskip("ai_edge_quantizer.utils.tfl_flatbuffer_utils")
    (graph,) = tools.read_model((block_copy.path / file.name).read_bytes()).subgraphs
    (step,) = (
        one
        for one in graph.operators
        if "Conv2d_second" in tools.get_op_scope(one, graph.tensors)
        and len(one.inputs) == 3
        and graph.tensors[one.inputs[1]].type == 9  # INT8
    )
    values = graph.tensors[step.inputs[0]].quantization
    assert values.scale == pytest.approx([largest / 255], rel=1e-3)
    assert values.zeroPoint == [-128]
    assert len(graph.tensors[step.inputs[1]].quantization.scale) == 16


def test_int8_with_one_image_is_built(block_copy: Artifact, block_model: FoldedModel) -> None:
    file = TARGET.plan("int8")
    images = draw_images(1)
    path = block_copy.path / file.name
    target.build(file, BuildRequest(block_copy, path, model=block_model, images=images))
    logits = run.load(path, n_threads=1).run(images)
    expected = block_model(torch.from_numpy(images)).numpy()
    assert logits.argmax() == expected.argmax()
