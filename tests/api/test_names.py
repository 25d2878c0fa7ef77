"""The names of the Python API, one by one; importing the package loads none of them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

import kdedge
from kdedge.runtime.artifact import Artifact


def test_the_names_are_sorted_and_listed() -> None:
    assert kdedge.__all__ == sorted(kdedge.__all__) == dir(kdedge)


def test_each_is_there_and_documented() -> None:
    for name in kdedge.__all__:
        assert getattr(kdedge, name) is not None
        assert name == "__version__" or getattr(kdedge, name).__doc__, name


def callables() -> Iterator[Callable[..., object]]:
    """The functions of the API, and the methods of the classes that it defines itself."""
    for name in kdedge.__all__:
        one = getattr(kdedge, name)
        own = vars(one).values() if getattr(one, "__module__", "").startswith("kdedge.api") else ()
        members = [one, *own] if isinstance(one, type) else [one]
        members = [getattr(member, "fget", member) for member in members]
        yield from (inspect.unwrap(one) for one in members if inspect.isfunction(one))


def test_what_a_call_returns_can_be_named() -> None:
    """So that a program can annotate it, and tell results apart with isinstance."""
    for function in callables():
        annotation = str(function.__annotations__.get("return"))
        for name in set(re.findall(r"(?<![.\w])[A-Z]\w+", annotation)) - {"None"}:
            found = function.__globals__.get(name)
            for kind in [found] if isinstance(found, type) else get_args(found):
                is_own = getattr(kind, "__module__", "").startswith("kdedge.")
                assert not is_own or getattr(kdedge, kind.__name__) is kind, (function, name)
            assert found is not None or hasattr(kdedge, name), (function, name)


def test_a_run_completes_the_keywords_of_its_methods() -> None:
    for method in ("evaluate", "export", "bench", "report", "load"):
        bound = inspect.signature(getattr(kdedge.Run, method).__get__(object()))
        of_function = inspect.signature(getattr(kdedge, method)).parameters.values()
        keywords = {one.name for one in of_function if one.kind is one.KEYWORD_ONLY}
        assert keywords <= set(bound.parameters), method


def test_no_call_has_a_folder_of_runs_of_its_own() -> None:
    """`runs_folder` alone knows it, and reads KDEDGE_RUNS."""
    functions = {name: getattr(kdedge, name) for name in kdedge.__all__}
    defaults = {
        name: root.default
        for name, function in functions.items()
        if inspect.isfunction(function)
        and (root := inspect.signature(function).parameters.get("root"))
    }
    of_sets = {"list_sets", "open_set", "fetch_set", "verify_set"}
    assert {name for name, default in defaults.items() if default is not None} == of_sets


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
