"""The toy training, as a module and as a process; a disk that is soon full."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kdedge


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _script(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _script(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return _load("toy_run")


@pytest.fixture(scope="session")
def filling() -> ModuleType:
    return _load("fill_run")


@pytest.fixture
def _started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        package = str(Path(kdedge.__file__).parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(_script(name)), *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def start_toy(
    _started: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.Popen[str]]:
    """Starts the toy training as a process: root, then options of the script."""
    return lambda root, **options: _started("toy_run", str(root), json.dumps(options))


@pytest.fixture
def start_filling(
    _started: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.Popen[str]]:
    """Starts filling a teacher store as a process: root, seconds a forward pass."""
    return lambda root, pass_s: _started("fill_run", str(root), str(pass_s))
