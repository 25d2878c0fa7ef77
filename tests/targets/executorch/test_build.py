"""ExecuTorch's programs: which layers are in eight bits, and by which ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.errors import RecipeError
from kdedge.runtime.artifact import Artifact
from kdedge.targets.base import BuildRequest

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

pytest.importorskip("executorch")
torch = pytest.importorskip("torch")

from kdedge.builders import executorch as target  # noqa: E402
from kdedge.builders.program import example_images, export_program  # noqa: E402
from kdedge.native_lines import quiet  # noqa: E402
from kdedge.targets.executorch import TARGET  # noqa: E402

MAX_BATCH = 4
LINEAR = ("query", "key", "value", "out", "mlp.c_fc", "mlp.c_proj")


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def quantize(model: Any, parts: Any) -> Any:
    """A model's program as a module with quantized layers."""
    batches = (1, MAX_BATCH)
    with quiet():
        example = example_images(model, size_px=32, batches=batches)
        program = export_program(model, example, batches=batches)
        return target.quantized(program.module(), parts)


def test_only_the_blocks_linear_layers_are_quantized(block_model: FoldedModel) -> None:
    module = quantize(block_model, [torch.from_numpy(draw_images(4))])
    found = set()
    for node in module.graph.nodes:
        if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
            kinds = {"dequantize" in str(one.target) for one in node.args[:2]}
            assert len(kinds) == 1  # both or none
            if kinds == {True}:
                found.add(target.module_path(node))
    assert found == {f"blocks.0.{name}" for name in LINEAR}


def test_a_convolutions_range_is_that_of_all_calibration_images(cnn_model: Any) -> None:
    images = (255 * draw_images(8)).astype(np.uint8)
    largest = float(cnn_model.before_second(torch.from_numpy(images)).max())  # 0 is the least
    module = quantize(cnn_model, [torch.from_numpy(part) for part in np.split(images, 2)])
    (node,) = (one for one in module.graph.nodes if target.module_path(one) == "second"
               and one.target is torch.ops.aten.conv2d.default)  # fmt: skip
    _, scale, zero, *limits = node.args[0].args
    assert limits[:2] == [-128, 127]
    assert scale == pytest.approx(largest / 255, rel=1e-4)
    assert zero == -128


@pytest.mark.parametrize("batches", [(1, 4), (4, 4), (1, 64)])
@pytest.mark.parametrize("n_images", [1, 6, 40])
def test_calibration_batches_hold_every_image(n_images: int, batches: tuple[int, int]) -> None:
    images = draw_images(n_images)
    parts = list(target.calibration_batches(images, batches))
    assert all(batches[0] <= len(part) <= min(batches[1], 32) for part in parts)
    every = torch.cat(parts).numpy()
    np.testing.assert_array_equal(every[:n_images], images)
    assert (every[n_images:] == images[-1]).all()


class _Branches(torch.nn.Module):
    """A step that depends on the values of the pixels."""

    pixels = "float"

    def forward(self, images: Any) -> Any:
        values = images.flatten(1)[:, :5]
        return values if images.sum() > 0 else -values


def test_a_step_that_depends_on_the_pixels_is_told(block_copy: Artifact) -> None:
    file = TARGET.plan("fp32")
    with pytest.raises(RecipeError, match=r"model\.pte cannot be built by executorch .*data-dep"):
        target.build(file, BuildRequest(block_copy, block_copy.path / file.name, model=_Branches()))
    assert not list(block_copy.path.glob("*.pte"))
