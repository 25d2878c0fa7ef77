"""The rules that tools check: lint, format, types, layers, and what a wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_finds_nothing() -> None:
    run("ruff", "check", "--quiet", ".")


def test_the_code_is_formatted() -> None:
    run("ruff", "format", "--check", "--quiet", ".")


def test_types_hold_strictly() -> None:
    run("mypy", "kdedge")


def test_imports_point_down() -> None:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_a_wheel_holds_the_recipes_the_templates_and_the_demos_clips(tmp_path: Path) -> None:
    run("build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"kdedge/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes <= names
    clips = {name for name in names if name.startswith("kdedge/clip/builtin/")}
    assert {name.rpartition(".")[2] for name in clips} >= {"safetensors", "json", "py"}
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "kdedge").glob("*/templates/*")}
    assert templates
    assert templates <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_core_loads_no_torch() -> None:
    modules = ["kdedge", "kdedge.cli.main", "kdedge.config.load", "kdedge.runtime.preprocess"]
    modules += ["kdedge.runs.find", "kdedge.cli.show", "kdedge.cli.distill", "kdedge.results"]
    heavy = ("torch", "torchvision", "open_clip", "torchmetrics", "tensorboard")
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}];"
        f" print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_no_note_to_self_is_left_in_the_code(word: str) -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "kdedge").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
