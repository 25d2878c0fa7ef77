"""ExecuTorch's programs of an artifact: what is built, from what, and how it is listed."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.deploy.build import RunInputs, build_files
from kdedge.errors import DataError, MissingPackage, RecipeError
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.protocol import BuildRequest

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

pytest.importorskip("executorch")
torch = pytest.importorskip("torch")

from kdedge.runtime.native_lines import quiet  # noqa: E402
from kdedge.targets.executorch import build as target  # noqa: E402
from kdedge.targets.executorch import run  # noqa: E402
from kdedge.targets.program import example_images, export_program  # noqa: E402

MAX_BATCH = 4
LINEAR = ("query", "key", "value", "out", "mlp.c_fc", "mlp.c_proj")


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def draw_bytes(n_images: int) -> np.ndarray:
    return (255 * draw_images(n_images)).astype(np.uint8)


def quantize(model: Any, parts: Any) -> Any:
    """A model's program as a module with quantized layers."""
    batches = (1, MAX_BATCH)
    with quiet():
        example = example_images(model, size_px=32, batches=batches)
        program = export_program(model, example, batches=batches)
        return target.quantized(program.module(), parts)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_built_compared_and_listed(built: Artifact) -> None:
    assert load_artifact(built.path) == built
    entries = {file.name: file for file in built.files}
    assert {name: file.precision for name, file in entries.items()} == {
        "model.pte": "fp32",
        "model.int8.pte": "int8",
    }
    for file in entries.values():
        assert (file.target, file.device, file.gate) == ("executorch", "cpu", "passed")
        assert (file.data, file.made_from) == (None, None)
        assert file.sha256 == sha256(built.path / file.name)
        assert file.n_bytes == (built.path / file.name).stat().st_size
        assert file.parity is not None
        assert file.parity.runtime == f"executorch {version('executorch')} CPU"
        expected = {"tool": "ExecuTorch", "version": version("executorch")}
        assert file.built_with.items() >= expected.items()
    assert entries["model.int8.pte"].n_bytes < entries["model.pte"].n_bytes
    distances = {name: file.parity.mean_softmax_distance for name, file in entries.items()}  # type: ignore[union-attr]
    assert distances["model.pte"] < 1e-6 < distances["model.int8.pte"]


def test_nothing_of_the_machine_is_in_a_file(built: Artifact) -> None:
    for file in built.files:
        data = (built.path / file.name).read_bytes()
        assert str(built.path).encode() not in data
        assert str(Path(target.__file__).parents[3]).encode() not in data


def test_only_the_blocks_linear_layers_are_quantized(tiny_model: FoldedModel) -> None:
    module = quantize(tiny_model, [torch.from_numpy(draw_images(4))])
    found = set()
    for node in module.graph.nodes:
        if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
            kinds = {"dequantize" in str(one.target) for one in node.args[:2]}
            assert len(kinds) == 1  # both or none
            if kinds == {True}:
                found.add(target.place_of(node))
    assert found == {f"blocks.0.{name}" for name in LINEAR}


def test_a_convolutions_range_is_that_of_all_calibration_images(cnn_model: Any) -> None:
    images = draw_bytes(8)
    largest = float(cnn_model.before_second(torch.from_numpy(images)).max())  # 0 is the least
    module = quantize(cnn_model, [torch.from_numpy(part) for part in np.split(images, 2)])
    (node,) = (one for one in module.graph.nodes if target.place_of(one) == "second"
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


def test_a_file_of_another_origin_is_not_overwritten(
    artifact: Artifact, block_inputs: RunInputs
) -> None:
    (artifact.path / "model.pte").write_bytes(b"before")
    with pytest.raises(DataError, match=r"model\.pte exists"):
        build_files(artifact, "executorch", ["fp32"], run=block_inputs)
    assert (artifact.path / "model.pte").read_bytes() == b"before"


def test_an_artifact_without_its_run_is_told(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"has no folded model.*\n.*Give the run"):
        build_files(artifact, "executorch", ["fp32"])


def test_there_is_no_fp16(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"ExecuTorch has no FP16 files; it has: fp32, int8"):
        build_files(artifact, "executorch", ["fp16"])


def test_without_the_package_the_line_is_told(
    artifact: Artifact, block_inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(MissingPackage, match=r"pip install 'kdedge\[executorch\]'") as caught:
        build_files(artifact, "executorch", ["fp32"], run=block_inputs)
    assert caught.value.exit_code == 4
    assert load_artifact(artifact.path) == artifact


class _Bessel(torch.nn.Module):
    """A step that the runtime has no kernel for."""

    pixels = "float"

    def forward(self, images: Any) -> Any:
        return torch.special.bessel_j0(images.flatten(1)[:, :5])


class _Branches(torch.nn.Module):
    """A step that depends on the values of the pixels."""

    pixels = "float"

    def forward(self, images: Any) -> Any:
        values = images.flatten(1)[:, :5]
        return values if images.sum() > 0 else -values


@pytest.mark.parametrize(("kind", "named"), [(_Bessel, "bessel_j0"), (_Branches, "data-dependent")])
def test_a_step_that_cannot_be_expressed_is_named(
    artifact: Artifact, kind: type[Any], named: str
) -> None:
    (file,) = target.plan("fp32")
    with pytest.raises(RecipeError, match=r"model\.pte cannot be built by executorch") as caught:
        target.build(file, BuildRequest(artifact, artifact.path, model=kind()))
    assert named in str(caught.value)
    assert "Leave --executorch out" in str(caught.value)
    assert not list(artifact.path.glob("*.pte"))


def test_a_fixed_batch_of_bytes_is_calibrated_and_built(artifact: Artifact, cnn_model: Any) -> None:
    fixed = dataclasses.replace(artifact, batch=2, max_batch=2, pixels="uint8")
    images = draw_bytes(3)
    (file,) = target.plan("int8")
    target.build(file, BuildRequest(fixed, artifact.path, model=cnn_model, images=images))
    backend = run.load(artifact.path / "model.int8.pte", n_threads=1)
    assert (backend.batches, backend.pixels) == ((2, 2), "uint8")
    expected = cnn_model(torch.from_numpy(images[:2])).numpy()
    found = backend.run(images[:2])
    assert not np.array_equal(found, expected)
    # Values of the input, the weights and the output are each rounded to 1/255 of their range
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.ptp(expected))
    for n_images in (1, 3):
        with pytest.raises(DataError, match=rf"\[{n_images}, 3, 32, 32\]; expected uint8 \[2"):
            backend.run(images[:1].repeat(n_images, 0))
