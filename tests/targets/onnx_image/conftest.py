"""An artifact with ONNX files, and a smoke set with images before resize and crop."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kdedge.runtime.artifact import Artifact, ModelFile
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


@pytest.fixture
def artifact(
    tmp_path: Path,
    tiny_model: FoldedModel,
    onnx_files: dict[str, Path],
    noise: Callable[[int, int], Any],
    listed: Callable[..., ModelFile],
    save_artifact: Callable[..., Artifact],
) -> Artifact:
    """The tiny student's artifact with its float32 file."""
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    whole = [Image.fromarray(noise(*shape)) for shape in WHOLE]
    squares = [np.asarray(resize_and_crop(image, preprocess)) for image in whole]
    pixels = np.stack([*squares, *(noise(32, 32)[:, ::step] for step in (1, -1))])
    files = []
    for image in whole:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    onnx, folder = (listed(onnx_files["fp32"]),), tmp_path / "artifact"
    found = save_artifact(folder, tiny_model, pixels=pixels, whole=files, files=onnx)
    shutil.copy(onnx_files["fp32"], folder)
    return found
