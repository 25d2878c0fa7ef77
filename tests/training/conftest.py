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
from typing import Any

import pytest

import kdedge

_SCRIPT = Path(__file__).with_name("toy_run.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_run", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return _load()


@pytest.fixture
def start_toy() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the toy training as a process: root, then options of the script."""
    running: list[subprocess.Popen[str]] = []

    def start(root: Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", str(_SCRIPT), str(root), json.dumps(options)]
        package = str(Path(kdedge.__file__).parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        process = subprocess.Popen(
            command,
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
