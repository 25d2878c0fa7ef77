"""An artifact with ONNX files and a smoke set, and processors with and without bfloat16."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kdedge.runtime.artifact import Artifact, ModelFile

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


@pytest.fixture
def artifact(
    tmp_path: Path,
    tiny_model: FoldedModel,
    onnx_files: dict[str, Path],
    listed: Callable[..., ModelFile],
    save_artifact: Callable[..., Artifact],
) -> Artifact:
    """The tiny student's artifact with its ONNX files, on one file system with the tests."""
    files = tuple(listed(path, precision) for precision, path in onnx_files.items())
    found = save_artifact(tmp_path / "artifact", tiny_model, files=files)
    for path in onnx_files.values():
        shutil.copy(path, found.path)
    return found
