"""Packages from outside, installed into a folder of their own, and `kdedge` that sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kdedge

PACKAGES = Path(__file__).parent

EntryPoints = Mapping[str, Mapping[str, str]]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def _install(site: Path, package: Path, entry_points: EntryPoints) -> Path:
    """Installs a package as pip does: its files, and a dist-info that names its entry points."""
    shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.fixture(scope="session")
def install() -> Callable[[Path, Path, EntryPoints], Path]:
    """Installs a package with entry points by group into a folder."""
    return _install


@pytest.fixture(scope="session")
def kdedge_with(_forking: Any) -> Callable[..., Done]:
    """Runs a command in a process of its own that sees what is installed in a folder."""

    def run(site: Path, *arguments: str, cwd: Path) -> Done:
        paths = [str(site), str(Path(kdedge.__file__).parents[1])]
        done = subprocess.run(
            [_forking.python, "-m", "kdedge", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory, install: Any) -> Path:
    """A folder with the toy package."""
    points = {"kdedge.targets": {"toy": "kdedge_toy.numpy_target"}}
    return install(tmp_path_factory.mktemp("site"), PACKAGES / "kdedge_toy", points)
