"""An artifact with ExecuTorch programs, built once: lowering to XNNPACK takes seconds."""

from __future__ import annotations

import functools
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from kdedge.deploy.build import RunInputs, build_files
from kdedge.deploy.parity import SMOKE_SET, parity_on_smoke_set, write_smoke_set
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.batches import to_input
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

MAX_BATCH = 4
GATES = {"agreement": {"fp32": 100, "fp16": 50, "int8": 50}, "max_drop": 1}


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="session")
def tiny_model() -> FoldedModel:
    """A folded student of one block, as each block takes seconds to lower: 32x32 pixels."""
    import torch
    from open_clip.transformer import VisionTransformer

    from kdedge.clip.blocks import make_wrappable
    from kdedge.fold import fold
    from kdedge.methods.protocol import ImagePath

    torch.manual_seed(0)
    visual = VisionTransformer(32, 8, 32, 1, 2, 2.0, output_dim=16).eval().requires_grad_(False)
    make_wrappable(visual.transformer)
    vectors = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return fold(ImagePath(visual), vectors, scale=20.0, preprocess=preprocess)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, tiny_model: FoldedModel) -> Artifact:
    """The tiny student's artifact with a smoke set, and without model files."""
    import torch

    folder = tmp_path_factory.mktemp("bare")
    pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    write_smoke_set(
        folder / SMOKE_SET, pixels, tiny_model(torch.from_numpy(to_input(pixels, "float"))).numpy()
    )
    artifact = Artifact(
        path=folder,
        name="tiny",
        class_names=tuple("abcde"),
        preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pixels="float",
        head="scores",
        max_batch=MAX_BATCH,
        batch="dynamic",
        others={SMOKE_SET: hashlib.sha256((folder / SMOKE_SET).read_bytes()).hexdigest()},
        gates=GATES,
    )
    artifact.save()
    return artifact


def _inputs(artifact: Artifact, model: FoldedModel) -> RunInputs:
    """What the export of the tiny student's run has."""
    compare = functools.partial(parity_on_smoke_set, artifact)
    return RunInputs(model, compare, draw_images(8))


@pytest.fixture(scope="session")
def built(
    bare: Artifact, tiny_model: FoldedModel, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """An artifact with the programs in float32 and INT8; not to be changed."""
    pytest.importorskip("executorch")
    folder = shutil.copytree(bare.path, tmp_path_factory.mktemp("built") / "artifact")
    artifact = load_artifact(folder)
    found, names = build_files(
        artifact, "executorch", ["fp32", "int8"], run=_inputs(artifact, tiny_model)
    )
    assert names == ("model.pte", "model.int8.pte")
    return found


@pytest.fixture
def artifact(bare: Artifact, tmp_path: Path) -> Artifact:
    """A copy of `bare`."""
    return load_artifact(shutil.copytree(bare.path, tmp_path / "artifact"))


@pytest.fixture
def inputs(artifact: Artifact, tiny_model: FoldedModel) -> RunInputs:
    """What the export of the tiny student's run has, for `artifact`."""
    return _inputs(artifact, tiny_model)


@pytest.fixture
def files(built: Artifact, tmp_path: Path) -> Path:
    """A copy of the folder of `built`."""
    return shutil.copytree(built.path, tmp_path / "artifact")
