"""Recipes whose files are there: empty ones, which a plan never reads, and ones to train with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

RECIPE = """\
name: {name}
classes: [cat, dog, red fox, school bus]
data:
  unlabeled: {{folder: pool}}
  labeled: {{folder: labeled, shots: 4}}
  test: {{folder: test}}
  split: {split}
teacher: {{weights: teacher.pt}}
student: {{weights: student.pt}}
optim: {{epochs: 2}}
"""
DEPTHS = "settings: {{prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}}"
TRAINABLE = RECIPE.replace("teacher.pt}}", f"teacher.pt, {DEPTHS}}}}}").replace(
    "student.pt}}", "student.pt, settings: {{prompt_depth: 2}}}}"
)
"""The depths are for the three layers of small CLIPs."""

FOLDERS = ("pool", "labeled", "test")


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe and what it names."""
    for name in FOLDERS:
        (tmp_path / name).mkdir(exist_ok=True)
    for name in ("teacher.pt", "student.pt"):
        (tmp_path / name).touch()

    def write(name: str = "tiny", split: str = "base-to-novel") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(RECIPE.format(name=name, split=split))
        return path

    return write


@pytest.fixture
def plan_of(tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Any]:
    """Plans a suite over recipes that are there already, or over the recipe `tiny`."""
    from kdedge.paper.suite.plan import make_plan
    from kdedge.paper.suite.spec import load_suite

    def plan(methods: str, *, recipes: str = "tiny.yaml", more: str = "") -> Any:
        if recipes == "tiny.yaml" and not (tmp_path / recipes).exists():
            write_recipe()
        path = tmp_path / "s.yaml"
        path.write_text(f"name: grid\nrecipes: [{recipes}]\nmethods: [{methods}]\n{more}")
        return make_plan(load_suite(path))

    return plan


@pytest.fixture(scope="session")
def images_and_weights(
    tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path], tiny_sizes: dict
) -> Path:
    """What the recipe names: two small CLIPs, and four images of each class in each folder."""
    project = tmp_path_factory.mktemp("filled")
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        for name in ("cat", "dog", "red fox", "school bus"):
            (project / folder / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(project / folder / name / f"{number}.png")
    for number, name in enumerate(("teacher.pt", "student.pt")):
        shutil.copy(write_clip(tiny_sizes, tag=1 + number), project / name)
    for path in project.rglob("*.p[nt]*"):
        os.utime(path, (1e9, 1e9))  # what has just changed is read again by each command
    return project


def _copy_into(source: Path, target: Path) -> None:
    """Copies a project; weights and images, which no test writes into, are linked."""

    def copy(file: str, to: str) -> None:
        Path(to).unlink(missing_ok=True)
        (os.link if file.endswith((".pt", ".png")) else shutil.copy2)(file, to)

    shutil.copytree(source, target, copy_function=copy, dirs_exist_ok=True)


@pytest.fixture
def filled(images_and_weights: Path, tmp_path: Path) -> Path:
    """A project of the test's own to train in, with a recipe."""
    _copy_into(images_and_weights, tmp_path)
    (tmp_path / "tiny.yaml").write_text(TRAINABLE.format(name="tiny", split="base-to-novel"))
    return tmp_path


SUITE = """\
name: grid
recipes: [tiny.yaml]
methods: [{name: teacher, role: teacher}, coop, promptkd]
seeds: [1]
set: {baseline.optim: {epochs: 1, batch_size: 8}}
"""


@pytest.fixture(scope="session")
def finished_project(images_and_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a suite, whose runs were trained without it: 01 to 03."""
    import torch

    from kdedge.config.load import load_recipe
    from kdedge.setup.workspace import Workspace
    from kdedge.training.distill import distill_student
    from kdedge.training.run_job import run_job
    from kdedge.training.teacher import baseline_job, with_baseline

    project = tmp_path_factory.mktemp("finished")
    _copy_into(images_and_weights, project)
    recipe = project / "tiny.yaml"
    recipe.write_text(TRAINABLE.format(name="tiny", split="base-to-novel"))
    (project / "s.yaml").write_text(SUITE)
    workspace = Workspace(project / "runs", torch.device("cpu"))
    loaded = load_recipe(recipe, {"seed": 1, "baseline.optim": {"epochs": 1, "batch_size": 8}})
    distill_student(loaded, workspace)
    run_job(baseline_job(with_baseline(loaded, "coop"), workspace), resume=False)
    return project


@pytest.fixture
def finished(finished_project: Path, tmp_path: Path) -> Path:
    """A copy of that project, of the test's own."""
    _copy_into(finished_project, tmp_path)
    return tmp_path


@pytest.fixture
def state_of(tmp_path: Path) -> Callable[..., Any]:
    """Reads the state of a plan's cells; without a plan, of those of `s.yaml`."""
    from kdedge.paper.suite.plan import make_plan
    from kdedge.paper.suite.spec import load_suite
    from kdedge.paper.suite.state import SuiteState

    def read(plan: Any = None) -> Any:
        plan = make_plan(load_suite(tmp_path / "s.yaml")) if plan is None else plan
        state = SuiteState(plan, tmp_path / "suites/grid", tmp_path / "runs")
        state.read()
        return state

    return read
