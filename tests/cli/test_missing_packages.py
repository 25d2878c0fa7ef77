"""What a command needs and is not installed: named with the line that installs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Run = Callable[..., Any]

MISSING: list[tuple[str, tuple[str, ...], str]] = [
    ("av", ("predict", "art", "v.MP4"), "video"),
    *(("av", ("watch", "art", source), "video") for source in ("v.mp4", "0", "rtsp://x/y")),
    *(
        (package, ("serve", "art", "--port", "0"), "serve")
        for package in ("starlette", "uvicorn", "prometheus_client")
    ),
    *((package, ("report",), "report") for package in ("matplotlib", "jinja2")),
    ("ray", ("teach", "r.yaml", "--store", "--set", "student.views=1", "--ray"), "ray"),
]
LOADED = ("kdedge.serving", "kdedge.reporting", "kdedge.serving.api", "kdedge.api.report")


@pytest.mark.parametrize(("package", "command", "extra"), MISSING)
def test_a_missing_package_is_named_with_its_extra(
    kdedge: Run,
    trained: Path,
    device: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    command: tuple[str, ...],
    extra: str,
) -> None:
    device.write_artifact(Path("art"))
    Path("in").mkdir()
    for name in ("v.mp4", "v.MP4"):
        Path(name).write_bytes(b"x")
    for name in list(sys.modules):  # as in a new process
        if name.startswith((f"{package}.", *LOADED, "kdedge.serving.commands.serve")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    kdedge(*command).fails(4, package.replace("_", "-"), f"pip install 'kdedge[{extra}]'")
    assert not Path("runs/tiny/02/report").exists()
