"""Engines that are built for real, from small ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdedge.targets.base import BuildRequest


class Built(NamedTuple):
    """An engine file and what built it."""

    path: Path
    built_with: dict[str, Any]


@pytest.fixture(scope="session")
def build_engine(tiny_artifact: Callable[..., Any]) -> Callable[..., Built]:
    """Builds a target's engine for batches of 1 to 4, or as the options say."""

    def build(target: Any, onnx_path: Path, folder: Path, precision: Any, **options: Any) -> Built:
        file = target.plan(precision)
        artifact = tiny_artifact(folder, **options)
        path = folder / file.name
        return Built(path, target.build(file, BuildRequest(artifact, path, onnx_path=onnx_path)))

    return build
