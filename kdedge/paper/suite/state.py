"""The state of a suite's cells, in files of the suite's folder."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from kdedge.config.load import dump_recipe, named_files
from kdedge.errors import KdedgeError, explaining_writes
from kdedge.files import sha256_json, write_atomic, write_json
from kdedge.paper.suite.plan import Cell, Plan
from kdedge.records.evaluation import EvalResult
from kdedge.records.record import NonNegative, Record, if_readable, read_record
from kdedge.setup.classes import load_classes
from kdedge.setup.images import DataPart, RecipeImages
from kdedge.setup.workspace import Workspace

CellStatus = Literal["not begun", "interrupted", "outdated", "finished", "failed"]

_PARTS: tuple[DataPart, ...] = ("labeled", "unlabeled", "validation", "test")


@dataclass(frozen=True)
class Outcome(Record):
    """The outcome of a cell's last process.

    Attributes:
        status: `outdated` if the recipe, its row, or files that it names have changed since, or if
            the run is missing.
        inputs: hash of recipe, row and files when the process started; empty if they could not be
            read.
        run: folder of the run that was measured.
        result: the run's accuracies.
        seconds: training time of the run; None if nothing was trained.
        exit_code: exit code of a failed process; minus the number of a signal that killed it.
        last_lines: last lines of the log of a failed process.
    """

    status: CellStatus
    inputs: str = ""
    run: str | None = None
    result: EvalResult | None = None
    seconds: NonNegative | None = None
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()


class Inputs(NamedTuple):
    """The inputs of a cell's result, as hashes.

    Attributes:
        hash: hash of the cell's settings, the images, and the stamps of the files that its recipe
            names and of its teacher's weights; empty if they cannot be read.
        tested: hash of the test images and class names, as in `EvalResult.images_hash`.
    """

    hash: str = ""
    tested: str = ""


class SuiteState:
    """The outcomes of a suite's cells.

    Args:
        plan: the suite.
        folder: the suite's folder.
        root: folder of all runs, with the caches of images.

    Attributes:
        outcomes: the outcome of each cell, from the last call of `read` or `write`.
    """

    def __init__(self, plan: Plan, folder: Path, root: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.outcomes: dict[Cell, Outcome] = {}
        self._root = root
        self._inputs: dict[Cell, Inputs] = {}
        self._images: dict[str, Inputs] = {}

    def read(self) -> None:
        """Reads the outcomes of all cells, and the images of the finished cells."""
        self._inputs = {}
        self._images = {}
        self.outcomes = {cell: self._read(cell) for cell in self.plan.cells}

    def _read(self, cell: Cell) -> Outcome:
        file = self.file(cell, ".json")
        stored = None
        if file.exists():  # a damaged file counts as missing; the command finds its finished run
            stored = if_readable(lambda: read_record(Outcome, file, remedy="It is written anew."))
        if stored is None:
            return Outcome("interrupted" if self.file(cell, ".yaml").exists() else "not begun")
        run = Path(stored.run or file)
        has_run = (run / "provenance.json").exists()
        if has_run:  # but a newer run may have the number of a deleted one
            has_run = (run / "recipe.yaml").stat().st_mtime_ns <= file.stat().st_mtime_ns
        if stored.status == "failed" or (has_run and stored.inputs == self.inputs(cell).hash != ""):
            return stored
        return Outcome("outdated")

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell is finished and up to date."""
        return self.outcomes[cell].status == "finished"

    def begin(self, cell: Cell) -> Path:
        """Writes the recipe of a cell's process, and deletes the cell's last outcome.

        The process reads the recipe as planned, even if the suite's file is edited meanwhile.

        Raises:
            ResourceError: the folder may not be written.
        """
        recipe = self.file(cell, ".yaml")
        with explaining_writes(recipe.parent):
            recipe.parent.mkdir(parents=True, exist_ok=True)
            self.file(cell, ".json").unlink(missing_ok=True)
        write_atomic(recipe, dump_recipe(cell.loaded.recipe).encode())
        self.inputs(cell)  # hashes the inputs before the process reads them
        self.outcomes[cell] = Outcome("interrupted")
        return recipe

    def write(self, cell: Cell, outcome: Outcome) -> None:
        """Writes a cell's outcome; it replaces an older one.

        Raises:
            ResourceError: the folder may not be written.
        """
        self.outcomes[cell] = outcome
        write_json(self.file(cell, ".json"), outcome.to_dict())

    def file(self, cell: Cell, suffix: str) -> Path:
        """A file of a cell; a hash distinguishes labels that would have the same file name."""
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", cell.row).strip("-.")[:80] or "row"
        if label != cell.row:
            label += f"-{hashlib.sha256(cell.row.encode()).hexdigest()[:8]}"
        return self.folder / "cells" / cell.recipe / f"{label}-seed{cell.seed}{suffix}"

    def inputs(self, cell: Cell) -> Inputs:
        """The inputs of a cell's result, as they were at the first call."""
        if cell not in self._inputs:
            self._inputs[cell] = Inputs()
            with contextlib.suppress(KdedgeError):  # the cell's process reports the error
                self._inputs[cell] = self._read_inputs(cell)
        return self._inputs[cell]

    def _read_inputs(self, cell: Cell) -> Inputs:
        """Computes the hashes of a cell's inputs."""
        recipe = cell.loaded.recipe
        unlabeled = recipe.data.unlabeled
        if unlabeled is not None:  # hash all images, since draws depend on the seed
            unlabeled = unlabeled.model_copy(update={"per_class": None, "hold_out": None})
        data = recipe.data.model_copy(update={"unlabeled": unlabeled})
        key = f"{recipe.classes!r} {data!r}"
        if key not in self._images:
            classes = load_classes(recipe)
            workspace = Workspace(self._root, torch.device("cpu"))  # keeps these images only
            read = RecipeImages(recipe.model_copy(update={"data": data}), classes, workspace)
            images = [read.load(part) for part in _PARTS]
            assert images[-1] is not None  # the plan refuses a recipe without test images
            tested = images[-1].hash_with(classes.names)
            hashes = [part and part.list_hash for part in images]
            self._images[key] = Inputs(sha256_json([hashes, tested]), tested)
        named = named_files(recipe)
        if recipe.teacher is not None and recipe.teacher.run is not None:
            named += sorted(recipe.teacher.run.glob("*.safetensors"))
        files = [[status.st_size, status.st_mtime_ns] for status in map(Path.stat, named)]
        source = None if cell.source is None else self.inputs(cell.source).hash
        hashed, tested = self._images[key]
        return Inputs(sha256_json([cell.depends_on(cell.role), source, hashed, files]), tested)
