"""An artifact with ONNX files, and a smoke set with images before resize and crop."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kdedge.deploy.parity import SMOKE_SET, write_smoke_set
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import Preprocess, resize_and_crop

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

WHOLE = ((33, 47), (90, 41), (16, 16))
"""Height and width of the images before resize and crop."""


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Any]:
    """Random pixels [height, width, 3], the same for the same sides."""

    def draw(height: int, width: int) -> Any:
        rng = np.random.default_rng(height * 10_000 + width)
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return draw


@pytest.fixture(scope="session")
def listed() -> Callable[..., ModelFile]:
    """The entry of an ONNX file."""

    def make(path: Path, **values: Any) -> ModelFile:
        data = path.read_bytes()
        given = {"precision": "fp32", "device": "any", "gate": "passed", **values}
        sha256 = hashlib.sha256(data).hexdigest()
        return ModelFile(path.name, "onnx", sha256=sha256, n_bytes=len(data), **given)

    return make


@pytest.fixture
def artifact(
    tmp_path: Path,
    tiny_model: FoldedModel,
    onnx_files: dict[str, Path],
    noise: Callable[[int, int], Any],
    listed: Callable[..., ModelFile],
) -> Artifact:
    """The tiny student's artifact with its float32 file."""
    import torch

    folder = tmp_path / "artifact"
    folder.mkdir()
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    whole = [Image.fromarray(noise(*shape)) for shape in WHOLE]
    squares = [np.asarray(resize_and_crop(image, preprocess)) for image in whole]
    pixels = np.stack([*squares, *(noise(32, 32)[:, ::step] for step in (1, -1))])
    files = []
    for image in whole:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    with torch.no_grad():
        logits = tiny_model(torch.from_numpy(to_input(pixels, "float"))).numpy()
    smoke = folder / SMOKE_SET
    write_smoke_set(smoke, pixels, logits, files)
    found = Artifact(
        path=folder,
        name="tiny",
        class_names=tuple("abcde"),
        preprocess=preprocess,
        pixels="float",
        head="scores",
        max_batch=4,
        batch="dynamic",
        files=(listed(Path(shutil.copy(onnx_files["fp32"], folder))),),
        others={SMOKE_SET: hashlib.sha256(smoke.read_bytes()).hexdigest()},
        gates={"agreement": {"fp32": 100, "fp16": 50, "int8": 50}, "max_drop": 1},
    )
    found.save()
    return found
