"""LiteRT: a file gives what the model gives, and what cannot run says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    pass

pytest.importorskip("litert_torch")
torch = pytest.importorskip("torch")

from kdedge.targets.litert import run as target  # noqa: E402


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def test_int8_rounds_weights_by_output_and_inputs_by_token(
    files: Path, check_int8_by_token: Callable[..., None]
) -> None:
    check_int8_by_token(target.load(files / "model.int8.tflite", n_threads=1))
