"""A small project, untrained and trained, and `kdedge` in this process and in others."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASS_NAMES = ("cat", "dog", "red fox", "school bus")
RECIPE = """\
name: tiny
classes: {file: classes.txt}
data:
  unlabeled: {folder: pool}
  labeled: {folder: labeled, shots: 4}
  test: {folder: test}
  split: base-to-novel
teacher:
  weights: teacher.pt
  settings: {prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}
student:
  weights: student.pt
  settings: {prompt_depth: 2}
optim: {epochs: 2, batch_size: 4, warmup_epochs: 0}
gates: {agreement: {fp16: 0%, int8: 0%}, max_drop: 100}
"""
"""A student of two epochs hardly prefers one class: rounding changes its mind."""


def _draw_image(path: Path, *, label: int, number: int, side_px: int = 40) -> None:
    """Draws stripes, wider with the label, in a color of the number's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([label, number])
    x, y = np.meshgrid(np.arange(side_px), np.arange(side_px))
    stripes = (x + y * (label % 2)) // (2 + 3 * label) % 2
    colors = rng.integers(0, 256, (2, 3))
    pixels = colors[stripes] + rng.normal(0, 10, (side_px, side_px, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@pytest.fixture(scope="session")
def draw_image() -> Callable[..., None]:
    """Draws an image into a file."""
    return _draw_image


@pytest.fixture(scope="session")
def blank_project(
    tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path], tiny_sizes: dict
) -> Path:
    """Recipe, class list, images and two CLIPs; to be copied and not to be changed."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    teacher = {**tiny_sizes, "vision_width": 128, "vision_layers": 4, "embed_dim": 40}
    shutil.copy(write_clip(teacher, tag=2), folder / "teacher.pt")
    shutil.copy(write_clip(tiny_sizes), folder / "student.pt")
    for label, name in enumerate(CLASS_NAMES):
        for number in range(6):
            _draw_image(folder / "labeled" / name / f"{number}.jpg", label=label, number=number)
        for number in range(5):
            _draw_image(folder / "test" / name / f"{number}.jpg", label=label, number=10 + number)
        for number in range(10):
            _draw_image(folder / "pool" / f"{label}_{number}.jpg", label=label, number=20 + number)
    return folder


def copy_project(source: Path, target: Path) -> Path:
    """Copies a project, its runs too; the weights, which no test writes into, are linked.

    A symbolic link leaves their inode as it is, so that a run knows their hash.
    """

    def copy(file: str, to: str) -> str:
        if file.endswith(".pt"):
            Path(to).symlink_to(Path(file).resolve())
            return to
        return shutil.copy2(file, to)

    shutil.copytree(source, target, copy_function=copy)
    for recipe in target.glob("runs/*/*/recipe.yaml"):
        recipe.write_text(recipe.read_text().replace(str(source), str(target)))
    return target


@pytest.fixture(scope="session")
def copy_of() -> Callable[[Path, Path], Path]:
    """Copies a project."""
    return copy_project


@pytest.fixture
def enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Copies a project for the test alone, and makes the copy the current folder."""

    def copy_and_enter(source: Path, name: str = "project") -> Path:
        folder = copy_project(source, tmp_path / name)
        monkeypatch.chdir(folder)
        return folder

    return copy_and_enter


@pytest.fixture
def project(blank_project: Path, enter: Callable[..., Path]) -> Path:
    """An untrained project of the test's own, as the current folder."""
    return enter(blank_project)


@pytest.fixture(scope="session")
def trained_project(blank_project: Path, made_once: Callable[..., Path]) -> Path:
    """A project with the finished runs tiny/01 (teacher) and tiny/02 (student)."""
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.config.load import load_recipe
    from kdedge.files import SETTLED_NS
    from kdedge.setup.workspace import Workspace, set_up_device
    from kdedge.training.distill import distill_student

    def train(folder: Path) -> None:
        project = copy_project(blank_project, folder / "project")
        runs, device = project / "runs", set_up_device("cpu")
        distill_student(load_recipe(project / "r.yaml"), Workspace(runs, device))
        for weights in project.glob("*.pt"):  # once they are old enough, their hash is kept
            age_ns = time.time_ns() - weights.stat().st_ctime_ns
            time.sleep(max(0, SETTLED_NS - age_ns) / 1e9)
            Workspace(runs, device).identify(BackboneSpec(None, str(weights)))

    return made_once("trained", train) / "project"


@pytest.fixture
def trained(trained_project: Path, enter: Callable[..., Path]) -> Path:
    """That project once more, of the test's own, as the current folder."""
    return enter(trained_project, "trained")


@pytest.fixture(scope="session")
def exported_project(trained_project: Path, made_once: Callable[..., Path]) -> Path:
    """That project with an INT8 export of the student in artifacts/01."""
    from kdedge.cli.main import run

    def export(folder: Path) -> None:
        copy_project(trained_project, folder / "project")
        command = ["export", "tiny/02", "--int8", "--int8-minutes", "0"]
        assert run([*command, "--runs", str(folder / "project" / "runs")]) == 0

    return made_once("exported", export) / "project"


@pytest.fixture
def exported(exported_project: Path, enter: Callable[..., Path]) -> Path:
    """That project, of the test's own, as the current folder."""
    return enter(exported_project, "exported")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def succeeds(self) -> Done:
        """Asserts that it ended well; gives itself."""
        assert self.code == 0, self.err
        return self

    def fails(self, code: int, *parts: str) -> None:
        """Asserts that it ended with a code, printed no result, said this, and was no bug."""
        assert (self.code, self.out) == (code, ""), self.err
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err


Run = Callable[..., Done]


@pytest.fixture
def kdedge(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    from kdedge.cli.main import run

    def run_command(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def kdedge_in() -> Callable[..., Done]:
    """Runs a command in a folder, for fixtures whose result several tests read."""
    from kdedge.cli.main import run

    def run_command(folder: Path, *arguments: str) -> Done:
        out = io.StringIO()
        err = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patched,
        ):
            patched.chdir(folder)
            code = run(arguments)
        return Done(code, out.getvalue(), err.getvalue())

    return run_command


@pytest.fixture
def predict(kdedge: Run) -> Callable[..., list[dict[str, Any]]]:
    """Gives the lines of `kdedge predict` on the test images, by the first export of tiny/02."""

    def predict(*options: str) -> list[dict[str, Any]]:
        artifact = "runs/tiny/02/artifacts/01"
        done = kdedge("predict", artifact, "test", "--format", "jsonl", "--top", "4", *options)
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]

    return predict


@pytest.fixture(scope="session")
def public_layout(load_module: Callable[..., ModuleType]) -> ModuleType:
    """Makes checkpoints of the public code."""
    return load_module("public_layout", Path(__file__).parent)


@pytest.fixture(scope="module")
def device(load_module: Callable[..., ModuleType]) -> ModuleType:
    """Makes artifacts that name the color of an image, and images; the module's own copy."""
    pytest.importorskip("onnxruntime")
    return load_module("device")


@pytest.fixture
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """For `bench`: what pauses does so for no time."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def start(_forking: object) -> Iterator[Callable[..., object]]:
    """Starts a command, or a script, as a process of its own; the end of the test kills it."""
    import signal

    started = []

    def start_command(
        *arguments: str, cwd: Path | None = None, script: Path | None = None
    ) -> object:
        started.append(_forking.start(*arguments, cwd=cwd or Path.cwd(), script=script))
        return started[-1]

    yield start_command
    for process in started:
        process.send(signal.SIGKILL)
        process.wait()
