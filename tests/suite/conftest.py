"""Recipes whose files are there and whose weights are never read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe and what it names."""
    for name in ("pool", "labeled", "test"):
        (tmp_path / name).mkdir()
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
    from kdedge.config.suite import load_suite
    from kdedge.suite.plan import make_plan

    def plan(methods: str, *, recipes: str = "tiny.yaml", more: str = "") -> Any:
        if recipes == "tiny.yaml" and not (tmp_path / recipes).exists():
            write_recipe()
        path = tmp_path / "s.yaml"
        path.write_text(f"name: grid\nrecipes: [{recipes}]\nmethods: [{methods}]\n{more}")
        return make_plan(load_suite(path))

    return plan
