"""The whole flow on built-in data."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

from kdedge.api.arguments import need_training_packages
from kdedge.api.bench import bench
from kdedge.api.export import export
from kdedge.api.report import report
from kdedge.api.run import Run
from kdedge.config.load import load_recipe, shipped_recipes
from kdedge.files import write_atomic
from kdedge.records.evaluation import SampleImage
from kdedge.records.speed import SpeedResult
from kdedge.runs.folder import runs_folder
from kdedge.runs.results import read_details
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.process import torch_as_before


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        teacher: the teacher's run.
        student: the student's run.
        speed: measurements of the student, its teacher, plain CLIP and the exported file.
        examples: test drawings with the student's predictions: a right one, a wrong one, and the
            least certain one.
        artifact: the exported student; None if the extra `export` is not installed.
        page: the report; None if the extra `report` is not installed.
        seconds: duration of the demo.
    """

    teacher: Run
    student: Run
    speed: SpeedResult
    examples: tuple[SampleImage, ...]
    artifact: Artifact | None
    page: Path | None
    seconds: float


@torch_as_before()
def demo(
    *, root: str | Path | None = None, device: str | None = None, resume: bool = False
) -> Demo:
    """Trains, exports, measures and reports on built-in drawings with two tiny CLIPs; no download.

    Teacher and student learn as in a recipe of `init` for images with labels of every class.

    Args:
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue interrupted runs.

    Raises:
        SetupError: torch or the device is missing.
        ResourceError: memory or disk ran out.
    """
    need_training_packages("The demo")
    from kdedge.setup.workspace import Workspace, set_up_device
    from kdedge.training.distill import distill_student

    began = time.monotonic()
    root = runs_folder(root)
    workspace = Workspace(root, set_up_device(device))
    student = distill_student(load_recipe(shipped_recipes()["demo"]), workspace, resume=resume)
    teacher = student.teacher_folder()
    assert teacher is not None  # the recipe trains its own teacher
    samples = read_details(student)["student"].samples or {}
    examples = tuple(image for images in samples.values() for image in images[:1])
    artifact = None
    if _is_installed("onnx", "onnxscript", "onnxruntime"):
        artifact = export(student.path, root=root, device=device)
    speed = bench(
        student.path, against=(), batches=(1, 32), seconds=0.1, calls=5, root=root, device=device
    )
    page = None
    if _is_installed("matplotlib", "jinja2"):
        # Next to the demo's runs; replaces the page of an earlier demo
        page = student.path.parent / "report.html"
        write_atomic(page, report(student.path, root=root).read_bytes())
    seconds = time.monotonic() - began
    return Demo(Run(teacher), Run(student), speed, examples, artifact, page, seconds)


def _is_installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
