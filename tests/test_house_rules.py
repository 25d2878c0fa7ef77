"""The rules that tools check: lint, format, types, imports, signatures, and what a wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_PARAMETERS = 8


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


def test_imports_point_down_in_no_circle_and_into_no_private_module() -> None:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


def sources() -> dict[str, ast.Module]:
    """Path below the project -> syntax tree, for every module of the package."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "kdedge").rglob("*.py"))
    }


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).is_dir()


def is_module(name: str) -> bool:
    return is_package(name) or (ROOT / f"{name.replace('.', '/')}.py").is_file()


def test_no_private_name_is_imported_from_another_package() -> None:
    found = []
    for path, tree in sources().items():
        importer = path.replace("/", ".")
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("kdedge"):
                continue
            module = node.module or ""
            owner = module if is_package(module) else module.rpartition(".")[0]
            if importer.startswith(f"{owner}."):
                continue
            for name in (alias.name for alias in node.names):
                is_private = name.startswith("_") and not name.startswith("__")
                if is_private and not is_module(f"{module}.{name}"):
                    found.append(f"{path}:{node.lineno}: {name} of {module}")
    assert not found, "\n".join(["private names of other packages:", *found])


def test_no_function_takes_more_than_eight_parameters() -> None:
    found = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            arguments = node.args
            names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
            n_parameters = len(names[names[:1] in (["self"], ["cls"]) :])
            n_parameters += len(arguments.kwonlyargs)
            n_parameters += sum(one is not None for one in (arguments.vararg, arguments.kwarg))
            if n_parameters > MAX_PARAMETERS:
                name = getattr(node, "name", "lambda")
                found.append(f"{path}:{node.lineno}: {name} takes {n_parameters}")
    assert not found, "\n".join([f"more than {MAX_PARAMETERS} parameters:", *found])


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
