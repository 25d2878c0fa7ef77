"""The names of the Python API, one by one; importing the package loads none of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdedge
from kdedge.runtime.artifact import Artifact

NAMES = [
    "CellsFailed",
    "Comparison",
    "DataError",
    "DivergedError",
    "GateError",
    "InUseError",
    "Interrupted",
    "KdedgeError",
    "LoadedModel",
    "Predictions",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "Run",
    "SetupError",
    "__version__",
    "bench",
    "change_classes",
    "check",
    "check_speed",
    "compare",
    "cpu_choice",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "fetch_set",
    "fill_teacher_store",
    "import_checkpoint",
    "init",
    "list_methods",
    "list_runs",
    "list_sets",
    "load",
    "load_recipe",
    "open_artifact",
    "open_run",
    "open_set",
    "predict",
    "progress_to",
    "pseudo_label",
    "report",
    "run_suite",
    "scan_images",
    "schema",
    "serve",
    "teach",
    "train",
    "verify_client",
    "verify_set",
    "watch",
    "write_browser",
    "write_smoke_images",
    "write_triton",
]


def test_the_names_are_these() -> None:
    assert kdedge.__all__ == NAMES
    assert dir(kdedge) == NAMES


def test_each_is_there_and_documented() -> None:
    for name in NAMES:
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
