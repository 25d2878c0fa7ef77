"""The names of the Python API, one by one; importing the package loads none of them."""

from __future__ import annotations

import subprocess
import sys

import kdedge

NAMES = [
    "DataError",
    "DivergedError",
    "GateError",
    "KdedgeError",
    "LoadedModel",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "Run",
    "SetupError",
    "__version__",
    "bench",
    "distill",
    "evaluate",
    "export",
    "list_runs",
    "load",
    "load_recipe",
    "open_run",
    "report",
    "teach",
    "train",
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
