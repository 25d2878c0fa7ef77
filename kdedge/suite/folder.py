"""The folder of a suite: recipes, logs, failures and measurements of its cells."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from kdedge.config.load import dump_recipe
from kdedge.files import explain_os_error, write_atomic, write_json
from kdedge.records import Bounds, Record, Sha256, read_record
from kdedge.results import EvalResult
from kdedge.suite.plan import Cell

_T = TypeVar("_T", bound=Record)


@dataclass(frozen=True)
class Failure(Record):
    """How a cell's process failed.

    Attributes:
        job: key of the cell's job, or of its teacher's; None if unknown.
        exit_code: negative for the signal that killed the process.
        last_lines: the last lines of its log.
    """

    job: Sha256 | None
    exit_code: Annotated[int, Bounds(ge=-255, le=255)]
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class Measurement(Record):
    """Accuracies of a run on other test images or class names than those of its own evaluation.

    Attributes:
        run: the run, as `name/NN`.
        job: key of the run's job.
        test_list: hash of the test images.
        template: text pattern for the class names, which are in `result`.
        result: the accuracies.
    """

    run: str
    job: Sha256
    test_list: Sha256
    template: str
    result: EvalResult


@dataclass(frozen=True)
class SuiteFolder:
    """The files of a suite.

    Attributes:
        path: the folder.
    """

    path: Path

    def log(self, cell: Cell) -> Path:
        """The log of the cell's processes, one after the other."""
        return self._file(cell, ".log")

    def lock(self, cell: Cell) -> Path:
        """The file that a cell's process locks while it runs."""
        return self._file(cell, ".lock")

    def failure(self, cell: Cell) -> Failure | None:
        """The failure of a cell's last process; None if there is none."""
        return _read(Failure, self._file(cell, ".failure.json"))

    def measurement(self, cell: Cell) -> Measurement | None:
        """The last measurement for a cell; None if there is none."""
        return _read(Measurement, self._file(cell, ".eval.json"))

    def write(self, cell: Cell, record: Failure | Measurement) -> None:
        """Writes a record; it replaces an older one.

        Raises:
            ResourceError: the folder may not be written.
        """
        suffix = ".failure.json" if isinstance(record, Failure) else ".eval.json"
        write_json(self._file(cell, suffix), record.to_dict())

    def begin(self, cell: Cell) -> Path:
        """Writes the recipe of a cell's process, and deletes the record of its last failure.

        The process reads the recipe as planned, even if the suite's file is edited meanwhile.

        Raises:
            ResourceError: the folder may not be written.
        """
        recipe, failure = self._file(cell, ".yaml"), self._file(cell, ".failure.json")
        try:
            recipe.parent.mkdir(parents=True, exist_ok=True)
            failure.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, recipe.parent) from error
        write_atomic(recipe, dump_recipe(cell.loaded.recipe).encode())
        return recipe

    def _file(self, cell: Cell, suffix: str) -> Path:
        """A file of a cell; a hash distinguishes labels that would give the same file name."""
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", cell.row).strip("-.") or "row"
        if label != cell.row:
            label += f"-{hashlib.sha256(cell.row.encode()).hexdigest()[:8]}"
        return self.path / "cells" / cell.recipe / f"{label}-seed{cell.seed}{suffix}"


def _read(kind: type[_T], file: Path) -> _T | None:
    remedy = "Remove it and run the suite again: the cell runs again, or uses its finished run."
    return read_record(kind, file, remedy=remedy) if file.exists() else None
