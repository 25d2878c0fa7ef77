"""Finds the jobs of cells and the runs of jobs, by their keys; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdedge.config.load import load_recipe
from kdedge.config.recipe import Recipe
from kdedge.results import EvalResult
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.workspace import Workspace
from kdedge.suite.plan import Cell
from kdedge.training.baseline import baseline_job
from kdedge.training.find_teacher import named_teacher, open_teacher
from kdedge.training.student import file_teacher, student_job, student_parts, teaching_of
from kdedge.training.teach import teacher_job
from kdedge.training.teachers import AnyTeacher


@dataclass(frozen=True)
class Run:
    """A run with the key of its job."""

    folder: RunFolder
    record: Provenance
    key: str | None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe in its folder."""
        return load_recipe(self.folder.recipe).recipe


class Runs:
    """The runs in a folder, by the keys of their jobs.

    Args:
        root: folder of all runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._keys: dict[Path, str | None] = {}
        self._finished: dict[Path, Run] = {}
        self._begun: set[str | None] = set()

    def look(self) -> None:
        """Reads runs that are new or were unfinished."""
        self._begun = set()
        for run, record in runs_in(self.root, but=self._finished):
            if run.path not in self._keys:
                self._keys[run.path] = record.key
            key = self._keys[run.path]
            if record.is_finished:
                self._finished[run.path] = Run(run, record, key)
            else:
                self._begun.add(key)

    def finished(self, key: str | None = None) -> list[Run]:
        """The finished runs of a job, or of all jobs, newest first."""
        found = [run for run in self._finished.values() if key in (None, run.key)]
        return sorted(found, key=lambda run: str(run.record.finished_at), reverse=True)

    def has_begun(self, key: str) -> bool:
        """Whether a job has an unfinished run."""
        return key in self._begun


@dataclass(frozen=True)
class EvalSet:
    """The images and class names that accuracy is measured on.

    Attributes:
        list_hash: hash of the images.
        n_images: number of images.
        classes: the class names and their split.
    """

    list_hash: str
    n_images: int
    classes: Classes

    @classmethod
    def of(cls, images: Images | None, classes: Classes) -> EvalSet:
        """The readable test images of a recipe with `data.test`."""
        assert images is not None  # the plan refuses a recipe without it
        return cls(images.list_hash, len(images.indices), classes)

    def fits(self, result: EvalResult) -> bool:
        """Whether a result has this number of images, these class names and this split."""
        measured = (result.n_images, tuple(result.per_class), result.split)
        return measured == (self.n_images, self.classes.names, self.classes.split)


@dataclass(frozen=True)
class KnownJob:
    """The job of a cell.

    Attributes:
        test: images and class names that it is measured on.
        backbone: identity of its backbone; None for a cell that trains nothing.
        key: key of its job; None for a cell that trains nothing, or until its teacher is trained.
        teacher: key of the job of the teacher that is trained for it.
    """

    test: EvalSet
    backbone: str | None = None
    key: str | None = None
    teacher: str | None = None

    @property
    def keys(self) -> set[str]:
        """The keys that are known."""
        return {key for key in (self.key, self.teacher) if key is not None}


def find_job(cell: Cell, workspace: Workspace, runs: Runs) -> KnownJob:
    """Finds the job of a cell from hashes.

    Raises:
        KdedgeError: as the cell's command would raise at its start.
    """
    loaded = cell.loaded
    try:
        if cell.source is not None:
            classes = load_classes(loaded.recipe)
            images = RecipeData(loaded.recipe, classes, workspace)
            return KnownJob(EvalSet.of(images.load("test"), classes))
        if cell.role == "student":
            return _students_job(cell, workspace, runs)
        make = teacher_job if cell.role == "teacher" else baseline_job
        job = make(loaded, workspace)
        test = EvalSet.of(job.held_out.test, job.classes)
        return KnownJob(test, job.setup.backbone.identity, job.key())
    finally:
        workspace.forget_tensors()


def _students_job(cell: Cell, workspace: Workspace, runs: Runs) -> KnownJob:
    """The key of a student's job; it depends on the trained teacher."""
    parts = student_parts(cell.loaded, workspace)
    run, trained = named_teacher(cell.loaded, workspace), None
    teacher: AnyTeacher | None = file_teacher(parts)
    if teacher is None and run is None:
        trained = teacher_job(cell.loaded, workspace).key()
        run = next((done.folder for done in runs.finished(trained)), None)
    if run is not None:
        teacher = open_teacher(run, parts)
    key = None if teacher is None else student_job(parts, teaching_of(teacher, parts)).key()
    test = EvalSet.of(parts.held_out.test, parts.setup.classes)
    return KnownJob(test, parts.setup.backbone.identity, key, trained)
