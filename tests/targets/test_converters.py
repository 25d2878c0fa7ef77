"""What every converter of the folded model to files for CPUs keeps to."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import kdedge
from kdedge.artifacts.build import ExportInputs, build_files
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.base import BuildRequest, Target
from kdedge.targets.registry import build_module, find_target, run_module

if TYPE_CHECKING:
    from kdedge.runtime.backend import Backend

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Case:
    """A converter.

    Attributes:
        target: the target's name.
        files: its float32 and its INT8 file.
        distribution: what converts.
        runtime: what runs the files.
        missing: a module that it needs -> the line that installs it.
    """

    target: str
    files: tuple[str, str]
    distribution: str
    runtime: str
    missing: dict[str, str]


CASES = [
    Case(
        "litert",
        ("model.tflite", "model.int8.tflite"),
        "litert-torch",
        "ai-edge-litert",
        {
            "litert_torch": r"pip install 'kdedge\[litert\]'",
            "ai_edge_litert.interpreter": "pip install ai-edge-litert",
        },
    ),
    Case(
        "executorch",
        ("model.pte", "model.int8.pte"),
        "executorch",
        "executorch",
        {"executorch.extension.pybindings.portable_lib": r"pip install 'kdedge\[executorch\]'"},
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.target)
def case(request: Any) -> Case:
    """A converter that is installed."""
    pytest.importorskip(request.param.distribution.replace("-", "_"))
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def target(case: Case) -> Target:
    return find_target(case.target)


@pytest.fixture
def module(target: Target) -> Any:
    """The target's build.py."""
    return build_module(target)


@pytest.fixture(scope="module")
def built(
    case: Case,
    block_artifact: Artifact,
    block_inputs: ExportInputs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    """An artifact with the files in float32 and INT8; not to be changed."""
    folder = shutil.copytree(block_artifact.path, tmp_path_factory.mktemp("built") / "artifact")
    artifact = load_artifact(folder)
    found, names = build_files(
        artifact, find_target(case.target), ["fp32", "int8"], inputs=block_inputs
    )
    assert names == case.files
    return found


def test_files_are_built_compared_and_listed(case: Case, built: Artifact) -> None:
    assert load_artifact(built.path) == built
    float32, int8 = (built.file(name) for name in case.files)
    assert (float32.precision, int8.precision) == ("fp32", "int8")
    for file in (float32, int8):
        data = (built.path / file.name).read_bytes()
        assert (file.target, file.device, file.gate) == (case.target, "cpu", "passed")
        assert (file.data, file.made_from) == (None, None)
        assert (file.sha256, file.n_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert file.parity.runtime == f"{case.target} {version(case.runtime)} CPU"
        assert file.built_with["version"] == version(case.distribution)
        # Nothing of this machine
        assert str(built.path).encode() not in data
        assert str(Path(kdedge.__file__).parents[1]).encode() not in data
    assert int8.n_bytes < float32.n_bytes
    distances = [file.parity.mean_softmax_distance for file in (float32, int8) if file.parity]
    assert distances[0] < 1e-6 < distances[1]  # type: ignore[operator]


def test_int8_rounds_weights_by_output_and_inputs_by_token(
    case: Case, built: Artifact, target: Target, check_int8_by_token: Callable[[Backend], None]
) -> None:
    check_int8_by_token(run_module(target).load(built.path / case.files[1], n_threads=1))


def test_an_artifact_without_its_run_and_other_precisions_are_told(
    case: Case, block_copy: Artifact, target: Target
) -> None:
    with pytest.raises(RecipeError, match=r"has no folded model.*\n.*Give the run"):
        build_files(block_copy, find_target(case.target), ["fp32"], inputs=None)
    with pytest.raises(RecipeError, match=f"{target.label} has no FP16 files; it has: fp32, int8"):
        build_files(block_copy, find_target(case.target), ["fp16"], inputs=None)


def test_without_a_package_the_line_is_told(
    case: Case, block_copy: Artifact, block_inputs: ExportInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, line in case.missing.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(SetupError, match=line):
                build_files(block_copy, find_target(case.target), ["fp32"], inputs=block_inputs)
    assert load_artifact(block_copy.path) == block_copy


class Bessel(torch.nn.Module):
    """A step that no converter knows."""

    pixels = "float"

    def forward(self, images: Any) -> Any:
        return torch.special.bessel_j0(images.flatten(1)[:, :5])


def test_a_step_that_cannot_be_expressed_is_named(
    case: Case, block_copy: Artifact, target: Target, module: Any, capfd: Any
) -> None:
    before = sorted(block_copy.path.iterdir())
    file = target.plan("fp32")
    with pytest.raises(RecipeError, match=rf"{file.name} cannot be built by \w+") as caught:
        module.build(file, BuildRequest(block_copy, block_copy.path / file.name, model=Bessel()))
    assert "bessel_j0" in str(caught.value)
    assert "Leave this target out" in str(caught.value)
    assert sorted(block_copy.path.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_of_bytes_is_calibrated_and_built(
    block_copy: Artifact, target: Target, module: Any, cnn_model: Any
) -> None:
    fixed = dataclasses.replace(block_copy, batch=2, max_batch=2, pixels="uint8")
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    file = target.plan("int8")
    path = block_copy.path / file.name
    module.build(file, BuildRequest(fixed, path, model=cnn_model, images=images))
    backend = run_module(target).load(path, n_threads=1)
    assert (backend.batches, backend.pixels) == ((2, 2), "uint8")
    expected = cnn_model(torch.from_numpy(images[:2])).numpy()
    found = backend.run(images[:2])
    assert not np.array_equal(found, expected)
    # Values of the input, the weights and the output are each rounded to 1/255 of their range
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.ptp(expected))
    for n_images in (1, 3):
        with pytest.raises(DataError, match=rf"\[{n_images}, 3, 32, 32\]; expected uint8 \[2"):
            backend.run(images[:1].repeat(n_images, 0))
