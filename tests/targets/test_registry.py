"""The targets by name, and what is said where a package is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kdedge.targets
from kdedge.errors import BackendUnavailable, MissingPackage, RecipeError, SetupError
from kdedge.targets.registry import (
    build_module,
    check_can_build,
    check_can_run,
    find_target,
    list_backends,
    list_targets,
    planned_file,
    run_module,
    target_of_backend,
)

ROOT = Path(__file__).parents[2]
NAMES = (
    *("coreml", "executorch", "litert", "onnx", "onnx-image", "openvino"),
    *("tensorrt", "tensorrt-rtx", "torch-tensorrt"),
)

RESIZES = {"onnx-image"}
"""Targets whose files do more than the others, so that their times do not compare."""


def test_the_folder_holds_these_targets_and_backends() -> None:
    assert tuple(target.name for target in list_targets())[: len(NAMES)] == NAMES
    assert list_backends()[:5] == (
        *("executorch", "litert", "onnxruntime", "onnxruntime-image", "openvino"),
    )
    assert list_backends()[5:7] == ("tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize("name", NAMES)
def test_every_target_has_what_a_target_needs(name: str) -> None:
    target = find_target(name)
    folder = Path(kdedge.targets.__file__).parent / name.replace("-", "_")
    assert (folder / "run.py").is_file() == (target.backend is not None)
    if name != "onnx":  # see `BuildModule`
        assert callable(build_module(target).build)
    assert all(fnmatch(target.plan(one).name, target.files) for one in target.precisions)
    if target.backend is not None:
        assert callable(run_module(target).load)


@pytest.mark.parametrize("name", NAMES)
def test_the_precisions_for_cpus_are_those_of_files_for_cpus(
    name: str,
) -> None:
    target = find_target(name)
    assert set(target.cpu_precisions) <= set(target.precisions)
    if target.is_engine or target.backend is None or name in RESIZES:
        assert target.cpu_precisions == ()
        return
    if name == "onnx":
        module: Any = build_module(target)
        planned = [module.FLOAT32, module.FP16, module.INT8, module.INT8_CPU]
        assert {file.precision for file in planned if file.device != "gpu"} == {"fp32", "int8"}
        return
    try:
        check_can_build(target)
        planned = [planned_file(target, one) for one in target.precisions]
    except MissingPackage as error:
        pytest.skip(str(error))
    made = {file.precision for file in planned if file.device != "gpu"}
    assert made == set(target.cpu_precisions)


def test_every_extra_of_a_target_is_one_of_kdedges() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in NAMES:
        for package in find_target(name).build_packages:
            required = project["optional-dependencies"][package.extra]
            assert any(one.startswith(package.distributions[0]) for one in required), package


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kdedge.targets.registry import list_targets; list_targets();"
        " heavy = {'torch', 'ai_edge_litert', 'coremltools', 'executorch', 'onnx', 'onnxruntime',"
        " 'openvino', 'tensorrt', 'tensorrt_rtx', 'torch_tensorrt'};"
        " print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("find", "kind", "names"),
    [
        *((find_target, "target", "coreml, executorch, litert, onnx, onnx-image, openvino"),),
        *((target_of_backend, "backend", "executorch, litert, onnxruntime, onnxruntime-image"),),
    ],
)
def test_an_unknown_one_is_told_with_the_nearest_name_or_all(
    find: Callable[[str], Any], kind: str, names: str
) -> None:
    with pytest.raises(RecipeError, match=rf'no {kind} "tensort"\.\n  Did you mean tensorrt'):
        find("tensort")
    with pytest.raises(RecipeError, match=f"There are: {names},"):
        find("../x")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("onnxruntime", "onnxruntime", r"'kdedge\[runtime\]'"),
        ("executorch", "executorch.extension.pybindings.portable_lib", r"'kdedge\[executorch\]'"),
        ("litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
        ("openvino", "openvino", r"'kdedge\[openvino\]'"),
        ("tensorrt", "tensorrt", "tensorrt "),
        ("tensorrt-rtx", "tensorrt_rtx", r"'kdedge\[trt-rtx\]'"),
    ],
)
@pytest.mark.parametrize("how", ["absent", "stubs only"])
def test_a_package_that_is_not_there_is_told_with_the_line_that_installs_it(
    name: str, module: str, package: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of type stubs makes an empty module of the same name."""
    monkeypatch.setitem(sys.modules, module, None if how == "absent" else ModuleType(module))
    with pytest.raises((MissingPackage, BackendUnavailable), match=f"pip install {package}"):
        check_can_run(target_of_backend(name))


@pytest.mark.parametrize("module", ["onnxruntime", "openvino", "tensorrt"])
def test_a_package_without_its_libraries_is_told(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=r"cannot be (imported|loaded): libnvinfer\.so\.10"):
        check_can_run(target_of_backend(module))


DESCRIBE = """
from kdedge.targets.base import Target
TARGET = Target(
    {name!r}, "Broken", {flag!r}, "A flag.", "*.x", "folded model", ("fp32",), backend={backend!r}
)
"""
GOOD = DESCRIBE.format(name="broken", flag="--broken", backend="broken")

Broken = Callable[..., None]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Installs a package with the target `broken` whose modules hold these texts."""

    def install(**modules: str) -> None:
        package, info = tmp_path / "kdedge_broken", tmp_path / "kdedge_broken-1.dist-info"
        package.mkdir()
        info.mkdir()
        for name, text in {"__init__": "", **modules}.items():
            (package / f"{name}.py").write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdedge_broken\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[kdedge.targets]\nbroken = kdedge_broken\n")
        monkeypatch.syspath_prepend(tmp_path)

    for name in ("", ".build", ".run"):
        monkeypatch.delitem(sys.modules, f"kdedge_broken{name}", raising=False)
    return install


@pytest.mark.parametrize(
    ("describe", "reason"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero."),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of"),
        ("", "lacks TARGET."),
    ],
)
def test_a_target_that_cannot_be_loaded_is_warned_of_and_told_once_it_is_used(
    broken: Broken, describe: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken(__init__=describe)
    assert [target.name for target in list_targets()] == list(NAMES)
    with pytest.raises(SetupError, match='The target "broken" from kdedge_broken ') as found:
        find_target("broken")
    assert reason in str(found.value)
    assert caplog.messages == [str(found.value)]


@pytest.mark.parametrize(
    ("modules", "load", "reason"),
    [
        ({"build": "def plan(): ..."}, build_module, "lacks build"),
        ({}, run_module, "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_target_whose_module_does_not_do_is_told_when_it_is_loaded(
    broken: Broken, modules: dict[str, str], load: Callable[..., Any], reason: str
) -> None:
    broken(__init__=GOOD, **modules)
    target = find_target("broken")
    assert target_of_backend("broken") == target
    with pytest.raises(SetupError, match=reason):
        load(target)


def test_a_package_cannot_take_the_name_of_one_of_kdedges_own(
    broken: Broken, tmp_path: Path
) -> None:
    broken(__init__=GOOD)
    points = tmp_path / "kdedge_broken-1.dist-info" / "entry_points.txt"
    points.write_text("[kdedge.targets]\nonnx = kdedge_broken\n")
    assert [target.name for target in list_targets()] == list(NAMES)
    assert build_module(find_target("onnx")).__name__ == "kdedge.targets.onnx.build"
