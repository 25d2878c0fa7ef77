"""An artifact with LiteRT files, built once: a conversion takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdedge.deploy.build import RunInputs, build_files
from kdedge.runtime.artifact import Artifact, load_artifact

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel


@pytest.fixture(scope="session")
def tiny_model(block_model: FoldedModel) -> FoldedModel:
    """A folded student of one block."""
    return block_model


@pytest.fixture(scope="session")
def built(
    block_artifact: Artifact,
    block_inputs: RunInputs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    """An artifact with the files in float32 and INT8; not to be changed."""
    pytest.importorskip("litert_torch")
    folder = shutil.copytree(block_artifact.path, tmp_path_factory.mktemp("built") / "artifact")
    artifact = load_artifact(folder)
    found, names = build_files(artifact, "litert", ["fp32", "int8"], run=block_inputs)
    assert names == ("model.tflite", "model.int8.tflite")
    return found


@pytest.fixture
def artifact(block_artifact: Artifact, tmp_path: Path) -> Artifact:
    """A copy of `block_artifact`."""
    return load_artifact(shutil.copytree(block_artifact.path, tmp_path / "artifact"))


@pytest.fixture
def files(built: Artifact, tmp_path: Path) -> Path:
    """A copy of the folder of `built`."""
    return shutil.copytree(built.path, tmp_path / "artifact")
