"""The core without a wing: a copy of the package from which the wing's folder is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINGS = ("paper", "serving")


@pytest.fixture(params=[*WINGS, "all"])
def without_wing(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with kdedge, as a wheel without the wing would install it."""
    gone = WINGS if request.param == "all" else (request.param,)
    return install_without(*gone, folder=tmp_path)


@pytest.fixture
def without_paper(tmp_path: Path) -> Path:
    """The same without `kdedge.paper`."""
    return install_without("paper", folder=tmp_path)


def install_without(*gone: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kdedge", folder / "kdedge", ignore=ignored)
    for wing in gone:
        shutil.rmtree(folder / "kdedge" / wing)
    info = folder / f"kdedge-{distribution('kdedge').version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdedge\nVersion: 0\n")
    groups: dict[str, list[str]] = {}
    for point in distribution("kdedge").entry_points:
        if not point.module.startswith(tuple(f"kdedge.{wing}." for wing in gone)):
            groups.setdefault(point.group, []).append(f"{point.name} = {point.value}")
    text = "\n".join(f"[{group}]\n" + "\n".join(lines) for group, lines in groups.items())
    (info / "entry_points.txt").write_text(text)
    return folder


def start(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=installed,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def run(installed: Path, *arguments: str) -> str:
    done = start(installed, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


FLOW = """
from pathlib import Path

from PIL import Image

import kdedge

COLORS = {"red": (200, 9, 9), "blue": (9, 9, 200)}
for first, folder in enumerate(("cams", "labeled", "test")):
    for name, color in COLORS.items():
        place = Path(folder) if folder == "cams" else Path(folder, name)
        place.mkdir(parents=True, exist_ok=True)
        for number in range(6):
            shade = tuple(value + 6 * first + number for value in color)  # no image twice
            Image.new("RGB", (24, 24), shade).save(place / f"{name}-{folder}-{number}.png")
kdedge.init(
    "line",
    images="cams",
    classes=["red", "blue"],
    labeled="labeled",
    test="test",
    teacher="kdedge-demo-teacher:builtin",
    student="kdedge-demo-student:builtin",
)
run = kdedge.distill("line.yaml")
artifact = kdedge.export(run, targets=["onnx"])
with kdedge.load(artifact) as model:
    print(model("test/red/red-test-0.png").class_name)
print(kdedge.report().exists())
print(Path(kdedge.__file__).parents[1])
"""


def test_the_core_goes_its_whole_way(without_wing: Path) -> None:
    (without_wing / "flow.py").write_text(FLOW)
    said = run(without_wing, "flow.py").splitlines()
    assert said == ["red", "True", str(without_wing)]


def test_the_help_lists_no_command_of_it(without_wing: Path) -> None:
    listed = run(without_wing, "-m", "kdedge", "--help-all")
    assert "\n  distill " in listed
    for wing, command in (("paper", "suite"), ("serving", "serve")):
        is_here = (without_wing / "kdedge" / wing).exists()
        assert (f"\n  {command} " in listed) == is_here


def test_own_images_are_scanned_without_benchmark_sets(without_paper: Path) -> None:
    listed = run(without_paper, "-m", "kdedge", "data", "--help")
    assert "\n  scan " in listed
    assert "\n  fetch " not in listed


def test_a_recipe_with_a_benchmark_set_says_what_it_lacks(without_paper: Path) -> None:
    recipe = without_paper / "sun397.yaml"
    recipe.write_text(
        "name: sun397\n"
        "classes: {benchmark: sun397}\n"
        "data: {unlabeled: {benchmark: sun397}}\n"
        "teacher: {backbone: kdedge-demo-teacher, weights: builtin}\n"
        "student: {backbone: kdedge-demo-student, weights: builtin}\n"
    )
    done = start(without_paper, "-m", "kdedge", "distill", "sun397.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "kdedge: The recipe has benchmark: sun397, but no installed package has benchmark sets.\n"
        "  Install all of kdedge: its package kdedge.paper has the published sets. Or name images"
        " and classes of your own in the recipe.\n"
    )


def test_methods_and_what_a_run_is_compared_with_are_those_that_are_there(
    without_wing: Path,
) -> None:
    listed = run(without_wing, "-m", "kdedge", "methods")
    default = run(without_wing, "-m", "kdedge", "bench", "--help")
    assert "\npromptsrc " in listed
    has_rivals = (without_wing / "kdedge/paper").exists()
    assert ("\ncoop " in listed) == has_rivals
    assert ("default: coop,cocoop,promptsrc" in default) == has_rivals
