"""The names of the Python API, one by one; importing the package loads none of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdedge
from kdedge.runtime.artifact import Artifact


def test_the_names_are_sorted_and_listed() -> None:
    assert kdedge.__all__ == sorted(kdedge.__all__) == dir(kdedge)


def test_each_is_there_and_documented() -> None:
    for name in kdedge.__all__:
        assert getattr(kdedge, name) is not None
        assert name == "__version__" or getattr(kdedge, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(kdedge, "distil")


def test_importing_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, kdedge; print({'torch', 'numpy', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_loading_an_artifact_and_asking_it_loads_no_torch(
    make_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    artifact = make_artifact(tmp_path / "artifact").path
    code = (
        "import sys, kdedge\n"
        "from PIL import Image\n"
        "with kdedge.load(sys.argv[1]) as model:\n"
        "    assert model(Image.new('RGB', (40, 30)), top=2)\n"
        "print({'torch', 'torchvision', 'open_clip'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(artifact)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
