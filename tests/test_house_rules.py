"""The rules that tools check: lint, format, types, imports, and what a wheel holds."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_lint_finds_nothing() -> None:
    run("-m", "ruff", "check", "--quiet", ".")


def test_the_code_is_formatted() -> None:
    run("-m", "ruff", "format", "--check", "--quiet", ".")


def test_types_hold_strictly() -> None:
    run("-m", "mypy", f"--cache-dir={os.devnull}", "kdedge")  # writing one takes a quarter longer


def test_imports_point_down_in_no_circle_and_into_no_private_module() -> None:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    assert "4 kept, 0 broken" in run("-c", command)


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


PRIVATE = re.compile(r"kdedge(?:\.\w+)*\._[a-z]\w*|from kdedge[\w.]* import _[a-z]\w*")
"""A private module or name of kdedge's, in code and in the scripts that tests start."""

REPLACING = {"setattr", "delattr", "setitem", "delitem", "object"}
"""What monkeypatch and mock.patch replace with."""

ROOT_OF_THE_SYSTEM = "monkeypatch.setattr(machine, 'ROOT', "
"""`kdedge.runtime.machine` reads the operating system's files below it."""


def sources_of_tests() -> dict[str, str]:
    """Path below the project -> source, for every file of tests."""
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests").rglob("*.py"))
    }


def test_no_test_reaches_for_a_private_name_of_kdedge() -> None:
    found = []
    for path, source in sources_of_tests().items():
        names = {f"kdedge.{name}" for name in _private_attributes(ast.parse(source))}
        names |= set(PRIVATE.findall(source))
        found += [f"{path}: {name}" for name in sorted(names)]
    assert not found, "\n".join(["private names of kdedge:", *found])


def test_what_benchmarks_and_examples_import_from_kdedge_exists() -> None:
    missing = []
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for name in _origins(ast.parse(path.read_text(encoding="utf-8"))).values():
            *module, member = name.split(".")
            place = ROOT.joinpath(*module)
            files = (place.with_suffix(".py"), place / "__init__.py", place / "__init__.pyi")
            text = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
            is_module = place.joinpath(f"{member}.py").exists() or place.joinpath(member).is_dir()
            if name.startswith("kdedge.") and not (is_module or re.search(rf"\b{member}\b", text)):
                missing.append(f"{path.name}: {name}")
    assert not missing


def _origins(tree: ast.Module) -> dict[str, str]:
    """Name -> what it was imported from, wherever in a file that was."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for one in node.names:
                found[one.asname or one.name] = f"{node.module}.{one.name}"
        elif isinstance(node, ast.Import):
            for one in node.names:
                name = one.asname or one.name.partition(".")[0]
                found[name] = one.name if one.asname else name
        elif isinstance(node, ast.Assign) and "importorskip" in ast.unparse(node.value):
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value.args[0])
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "a class of the test's"
    return found


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _private_attributes(tree: ast.Module) -> set[str]:
    """Private attributes that are taken of what was imported from kdedge."""
    origins = _origins(tree)
    return {
        f"{_root(node)}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match("_[a-z]", node.attr)
        and origins.get(_root(node), "").startswith("kdedge")
    }


def _replaced(node: ast.AST) -> list[tuple[ast.expr, str]]:
    """What is replaced in, and what it is where no import tells: by monkeypatch, mock or itself."""
    if isinstance(node, ast.Assign):
        return [(one.value, "") for one in node.targets if isinstance(one, ast.Attribute)]
    if not isinstance(node, ast.Call) or not node.args:
        return []
    by, _, how = ast.unparse(node.func).rpartition(".")
    if by == "" and how == "setattr":
        return [(node.args[0], "")]
    is_patch = how in REPLACING and "patch" in by
    return [(node.args[0], "kdedge, as it seems")] if is_patch or how == "patch" else []


def test_no_test_replaces_a_part_of_kdedge() -> None:
    """Clocks, devices, servers and the system may be replaced; what it is shows in the imports."""
    found = []
    for path, source in sources_of_tests().items():
        tree = ast.parse(source)
        origins = _origins(tree) | {"host_gpu": "a device of the tests"}
        for node in ast.walk(tree):
            for target, unknown in _replaced(node):
                origin = origins.get(_root(target), unknown)
                if isinstance(target, ast.Constant):
                    origin = str(target.value)
                if origin.startswith("kdedge") and ROOT_OF_THE_SYSTEM not in ast.unparse(node):
                    found.append(f"{path}:{target.lineno}: {ast.unparse(target)}")
    assert not found, "\n".join(["replaced in tests:", *found])


def test_a_wheel_holds_the_recipes_the_templates_and_the_demos_clips(tmp_path: Path) -> None:
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"kdedge/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes <= names
    clips = {name for name in names if name.startswith("kdedge/clip/builtin/")}
    assert {name.rpartition(".")[2] for name in clips} >= {"safetensors", "json", "py"}
    assert "kdedge/paper/benchmark_sets/sets.yaml" in names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "kdedge").glob("*/templates/*")}
    assert templates
    assert templates <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
