"""LiteRT's files of an artifact: what is built, from what, and how it is listed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.deploy.build import RunInputs, build_files
from kdedge.errors import BackendUnavailable, DataError, MissingPackage, RecipeError
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.protocol import BuildRequest

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

pytest.importorskip("litert_torch")
torch = pytest.importorskip("torch")

from kdedge.targets.litert import build as target  # noqa: E402
from kdedge.targets.litert import run  # noqa: E402

LINEAR = ("query", "key", "value", "out", "c_fc", "c_proj")


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def draw_bytes(n_images: int) -> np.ndarray:
    return (255 * draw_images(n_images)).astype(np.uint8)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def layer_names(data: bytes) -> set[str]:
    """The last named part of each layer that becomes INT8."""
    names = [
        re.findall(r"(?:Linear|Conv2d)_(\w+);", scope) for _, scope in target.quantized_layers(data)
    ]
    assert len({name[-1] for name in names}) == len(names)
    return {name[-1] for name in names}


def test_files_are_built_compared_and_listed(built: Artifact) -> None:
    assert load_artifact(built.path) == built
    entries = {file.name: file for file in built.files}
    assert {name: file.precision for name, file in entries.items()} == {
        "model.tflite": "fp32",
        "model.int8.tflite": "int8",
    }
    for file in entries.values():
        assert (file.target, file.device, file.gate) == ("litert", "cpu", "passed")
        assert (file.data, file.made_from) == (None, None)
        assert file.sha256 == sha256(built.path / file.name)
        assert file.n_bytes == (built.path / file.name).stat().st_size
        assert file.parity is not None
        assert file.parity.runtime == f"litert {version('ai-edge-litert')} CPU"
        expected = {"tool": "LiteRT Torch", "version": version("litert-torch")}
        assert file.built_with.items() >= expected.items()
    quantizer = version("ai-edge-quantizer")
    assert entries["model.int8.tflite"].built_with["quantizer"] == quantizer
    assert entries["model.int8.tflite"].n_bytes < entries["model.tflite"].n_bytes
    distances = {name: file.parity.mean_softmax_distance for name, file in entries.items()}  # type: ignore[union-attr]
    assert distances["model.tflite"] < 1e-6 < distances["model.int8.tflite"]


def test_nothing_of_the_machine_is_in_a_file(built: Artifact) -> None:
    for file in built.files:
        data = (built.path / file.name).read_bytes()
        assert str(built.path).encode() not in data
        assert str(Path(target.__file__).parents[3]).encode() not in data


def test_only_the_blocks_linear_layers_are_quantized(built: Artifact) -> None:
    assert layer_names((built.path / "model.tflite").read_bytes()) == set(LINEAR)


def test_a_convolutions_range_is_that_of_all_calibration_images(
    artifact: Artifact, cnn_model: Any
) -> None:
    images = draw_bytes(8)
    fixed = dataclasses.replace(artifact, batch=2, max_batch=2, pixels="uint8")
    (file,) = target.plan("int8")
    target.build(file, BuildRequest(fixed, artifact.path, model=cnn_model, images=images))

    largest = float(cnn_model.before_second(torch.from_numpy(images)).max())  # 0 is the least
    tools = pytest.importorskip("ai_edge_quantizer.utils.tfl_flatbuffer_utils")
    (graph,) = tools.read_model((artifact.path / file.name).read_bytes()).subgraphs
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


def test_int8_with_one_image_is_built(artifact: Artifact, tiny_model: FoldedModel) -> None:
    (file,) = target.plan("int8")
    images = draw_images(1)
    target.build(file, BuildRequest(artifact, artifact.path, model=tiny_model, images=images))
    logits = run.load(artifact.path / file.name, n_threads=1).run(images)
    expected = tiny_model(torch.from_numpy(images)).numpy()
    assert logits.argmax() == expected.argmax()


def test_a_file_of_another_origin_is_not_overwritten(
    artifact: Artifact, block_inputs: RunInputs
) -> None:
    (artifact.path / "model.tflite").write_bytes(b"before")
    with pytest.raises(DataError, match=r"model\.tflite exists"):
        build_files(artifact, "litert", ["fp32"], run=block_inputs)
    assert (artifact.path / "model.tflite").read_bytes() == b"before"


def test_an_artifact_without_its_run_is_told(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"has no folded model.*\n.*Give the run"):
        build_files(artifact, "litert", ["fp32"])


def test_there_is_no_fp16(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"LiteRT has no FP16 files; it has: fp32, int8"):
        build_files(artifact, "litert", ["fp16"])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("litert_torch", r"pip install 'kdedge\[litert\]'"),
        ("ai_edge_litert.interpreter", "pip install ai-edge-litert"),
    ],
)
def test_without_a_package_the_line_is_told(
    artifact: Artifact,
    block_inputs: RunInputs,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    line: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((MissingPackage, BackendUnavailable), match=line) as caught:
        build_files(artifact, "litert", ["fp32"], run=block_inputs)
    assert caught.value.exit_code == 4
    assert load_artifact(artifact.path) == artifact


class _Bessel(torch.nn.Module):
    """A step that the converter does not know."""

    pixels = "float"

    def forward(self, images: Any) -> Any:
        return torch.special.bessel_j0(images.flatten(1)[:, :5])


def test_a_step_that_cannot_be_expressed_is_named(artifact: Artifact, capfd: Any) -> None:
    (file,) = target.plan("fp32")
    with pytest.raises(RecipeError, match=r"model\.tflite cannot be built by litert") as caught:
        target.build(file, BuildRequest(artifact, artifact.path, model=_Bessel()))
    assert "bessel_j0" in str(caught.value)
    assert "Leave --litert out" in str(caught.value)
    assert [path.name for path in artifact.path.glob("*litert*")] == []
    assert not list(artifact.path.glob("*.tflite"))
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_of_bytes_is_calibrated_and_built(artifact: Artifact, cnn_model: Any) -> None:
    """A convolution over 16 channels is quantized; the first, depthwise ones and the head not."""
    fixed = dataclasses.replace(artifact, batch=2, max_batch=2, pixels="uint8")
    images = draw_bytes(3)
    request = BuildRequest(fixed, artifact.path, model=cnn_model, images=images)
    with target.silent():
        assert layer_names(target.converted(request)) == {"second"}
    (file,) = target.plan("int8")
    target.build(file, request)
    backend = run.load(artifact.path / file.name, n_threads=1)
    assert (backend.batches, backend.pixels) == ((2, 2), "uint8")
    expected = cnn_model(torch.from_numpy(images[:2])).numpy()
    found = backend.run(images[:2])
    assert not np.array_equal(found, expected)
    # Values of the input, the weights and the output are each rounded to 1/255 of their range
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.ptp(expected))
    for n_images in (1, 3):
        with pytest.raises(DataError, match=rf"\[{n_images}, 3, 32, 32\]; expected uint8 \[2"):
            backend.run(images[:1].repeat(n_images, 0))
