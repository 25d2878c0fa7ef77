"""An artifact with ONNX files and a smoke set, and processors with and without bfloat16."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.deploy.parity import SMOKE_SET, write_smoke_set
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

MAX_BATCH = 4


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def with_flags(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the processor these flags."""
    read_text = Path.read_text

    def set_flags(flags: str) -> None:
        def read(path: Path, *arguments: Any, **options: Any) -> str:
            if path == Path("/proc/cpuinfo"):
                return f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags}\n"
            return read_text(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", read)

    return set_flags


@pytest.fixture
def artifact(tmp_path: Path, tiny_model: FoldedModel, onnx_files: dict[str, Path]) -> Artifact:
    """The tiny student's artifact with its ONNX files, on one file system with the tests."""
    import torch

    folder = tmp_path / "artifact"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    write_smoke_set(
        folder / SMOKE_SET, pixels, tiny_model(torch.from_numpy(to_input(pixels, "float"))).numpy()
    )
    files = []
    for precision, source in onnx_files.items():
        path = Path(shutil.copy(source, folder))
        values: dict[str, Any] = {"precision": precision, "device": "any", "gate": "passed"}
        n_bytes = path.stat().st_size
        files.append(ModelFile(path.name, "onnx", sha256=sha256(path), n_bytes=n_bytes, **values))
    found = Artifact(
        path=folder,
        name="tiny",
        class_names=tuple("abcde"),
        preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pixels="float",
        head="scores",
        max_batch=MAX_BATCH,
        batch="dynamic",
        files=tuple(files),
        others={SMOKE_SET: sha256(folder / SMOKE_SET)},
        gates={"agreement": {"fp32": 100, "fp16": 50, "int8": 50}, "max_drop": 1},
    )
    found.save()
    return found
