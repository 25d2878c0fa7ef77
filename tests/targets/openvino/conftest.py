"""An artifact with ONNX files and a smoke set, and processors with other instructions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kdedge.artifacts.build import build_files
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.targets.registry import find_target

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel


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


@pytest.fixture(scope="session")
def save_onnx_artifact(
    tiny_model: FoldedModel,
    onnx_files: dict[str, Path],
    listed: Callable[..., ModelFile],
    save_artifact: Callable[..., Artifact],
) -> Callable[[Path], Artifact]:
    """Saves the tiny student's artifact with its ONNX files in a new folder."""

    def save(folder: Path) -> Artifact:
        files = tuple(listed(path, precision) for precision, path in onnx_files.items())
        found = save_artifact(folder, tiny_model, files=files)
        for path in onnx_files.values():
            shutil.copy(path, folder)
        return found

    return save


@pytest.fixture
def artifact(save_onnx_artifact: Callable[[Path], Artifact], tmp_path: Path) -> Artifact:
    """That artifact, on one file system with the tests."""
    return save_onnx_artifact(tmp_path / "artifact")


@pytest.fixture(scope="session")
def openvino_files(
    save_onnx_artifact: Callable[[Path], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of one with OpenVINO files in float32 and FP16; not to be changed."""
    artifact = save_onnx_artifact(tmp_path_factory.mktemp("openvino") / "artifact")
    build_files(artifact, find_target("openvino"), ["fp32", "fp16"], inputs=None)
    return artifact.path
