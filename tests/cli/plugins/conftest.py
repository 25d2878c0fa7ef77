"""Packages from outside, as pip would install them, and `kdedge` processes that see them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import kdedge

ROOT = Path(kdedge.__file__).parents[1]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class OutsidePackage:
    """An installed package.

    Attributes:
        folder: on the path of processes that see it.
        cwd: where commands run.
        python: forks processes that have loaded torch.
    """

    folder: Path
    cwd: Path
    python: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `kdedge ARGUMENTS` in a process that sees the package."""
        path = os.pathsep.join([str(self.folder), str(ROOT)])
        return subprocess.Popen(
            [self.python, "-m", "kdedge", *arguments],
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *commands: str) -> list[Done]:
        """Runs commands one after the other in processes that see the package."""
        done = []
        for command in commands:
            process = self.start(*shlex.split(command))
            out, err = process.communicate()
            done.append(Done(process.returncode, out, err))
        return done


@pytest.fixture(scope="session")
def install(
    tmp_path_factory: pytest.TempPathFactory, _forking: Any
) -> Callable[..., OutsidePackage]:
    """Writes a package: its modules' sources or folders by name, and entry points by group.

    Its commands run in a folder with `images`, eight of each of the classes a, b and c, or in
    another one that is named.
    """

    def write(
        modules: Mapping[str, str | Path],
        entry_points: Mapping[str, Mapping[str, str]],
        cwd: Path | None = None,
    ) -> OutsidePackage:
        folder = tmp_path_factory.mktemp("site")
        info = folder / "outside-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        lines = []
        for group, points in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in modules.items():
            if isinstance(source, Path):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                (folder / f"{name}.py").write_text(source)
        return OutsidePackage(folder, cwd or _with_images(), _forking.python)

    def _with_images() -> Path:
        cwd = tmp_path_factory.mktemp("work")
        for label in range(3):
            for number in range(8):
                pixels = np.random.default_rng([label, number]).integers(0, 256, (24, 24, 3))
                image = cwd / "images" / "abc"[label] / f"{number}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(image)
        return cwd

    return write
