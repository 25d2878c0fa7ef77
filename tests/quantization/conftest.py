"""A folded student with three blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def folded(fold_student: Callable[[], Any]) -> Any:
    """The folded student; tests change copies of it."""
    return fold_student()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """[24, 3, 32, 32]: pixels of 0 to 1."""
    return np.random.default_rng(0).random((24, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="session")
def sites(folded: Any, made_once: Callable[..., Path]) -> Any:
    """Where it is quantized."""
    pytest.importorskip("onnx")
    from kdedge.builders.onnx.insert import find_sites
    from kdedge.builders.onnx.trace import write_onnx
    from kdedge.targets.onnx.graph import load_graph

    def write(made: Path) -> None:
        write_onnx(folded, made / "model.onnx", size_px=32, batches=(1, 1))

    return find_sites(load_graph(made_once("sites", write) / "model.onnx"), folded)


@pytest.fixture(scope="session")
def pictures() -> torch.Tensor:
    """[320, 3, 32, 32]: patches of different brightness and contrast."""
    rng = np.random.default_rng(1)
    coarse = rng.random((320, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    fine = rng.random((320, 3, 32, 32))
    mix = rng.random((320, 1, 1, 1))
    return torch.from_numpy((mix * coarse + (1 - mix) * fine).astype(np.float32))
