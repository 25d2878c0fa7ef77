"""The toy training and the filling of a store as processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _script(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.py")


@pytest.fixture
def _started(_forking: Any) -> Iterator[Callable[..., Any]]:
    running: list[Any] = []

    def start(name: str, root: Path, *arguments: str) -> Any:
        root.mkdir(parents=True, exist_ok=True)
        running.append(_forking.start(str(root), *arguments, cwd=root, script=_script(name)))
        return running[-1]

    yield start
    for process in running:
        process.send(signal.SIGKILL)
        process.wait()


@pytest.fixture
def start_toy(_started: Callable[..., Any]) -> Callable[..., Any]:
    """Starts the toy training as a process: root, then options of the script."""
    return lambda root, **options: _started("toy_run", root, json.dumps(options))


@pytest.fixture
def start_filling(_started: Callable[..., Any]) -> Callable[..., Any]:
    """Starts filling a teacher store as a process: root, seconds a forward pass."""
    return lambda root, pass_s: _started("fill_run", root, str(pass_s))
