"""What is kept of each cell: one JSON record, written whole, beside the log of its process."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from kdedge._files import explain_os_error, write_json
from kdedge._lock import is_locked
from kdedge.records import Bounds, NonNegative, Record, Sha256, read_record
from kdedge.results import EvalResult
from kdedge.suite.plan import Cell

Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class CellRecord(Record):
    """How a cell stands.

    Attributes:
        key: the cell's, which says what it is made from.
        recipe: the recipe's name.
        row: the row's label.
        seed: the seed.
        status: `running` is also what a killed suite leaves behind.
        arguments: what `kdedge` was called with; nothing where another cell's run had the result.
        seconds: how long that process took.
        run: folder of the finished run.
        result: the run's accuracies, without those of single classes.
        zero_shot: zero-shot CLIP's on the same backbone and images, where the run measured it.
        exit_code: of a process that failed; negative for the signal that killed it.
        last_lines: what it said last.
    """

    key: Sha256
    recipe: str
    row: str
    seed: Annotated[int, Bounds(ge=0)]
    status: Status
    arguments: tuple[str, ...] = ()
    seconds: NonNegative | None = None
    run: str | None = None
    result: EvalResult | None = None
    zero_shot: EvalResult | None = None
    exit_code: Annotated[int, Bounds(ge=-255, le=255)] | None = None
    last_lines: tuple[str, ...] = ()

    @classmethod
    def of(cls, cell: Cell, status: Status, **found: Any) -> CellRecord:
        """A cell's record; `found` holds further fields."""
        return cls(cell.key, cell.recipe, cell.row, cell.seed, status, **found)


def without_classes(result: EvalResult) -> EvalResult:
    """A result without the accuracies of single classes, which its run has."""
    return replace(result, per_class={})


@dataclass(frozen=True)
class Records:
    """The records of a suite's cells.

    Attributes:
        folder: the suite's.
    """

    folder: Path

    def file(self, cell: Cell) -> Path:
        """The file of a cell's record: another recipe, method or setting is another file."""
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", cell.row).strip("-.") or "row"
        name = f"{label}-seed{cell.seed}-{cell.key[:12]}.json"
        return self.folder / "cells" / cell.recipe / name

    def log(self, cell: Cell) -> Path:
        """What the cell's processes said, one after the other."""
        return self.file(cell).with_suffix(".log")

    def lock(self, cell: Cell) -> Path:
        """The file that a cell's process holds while it runs."""
        file = self.file(cell)
        return file.with_name(f".{file.stem}.lock")

    def read(self, cell: Cell) -> CellRecord | None:
        """How a cell stands; None where it was never begun.

        Raises:
            DataError: the record is damaged.
        """
        file = self.file(cell)
        if not file.exists():
            return None
        remedy = "Remove it: the cell then runs again, or finds its run finished."
        return read_record(CellRecord, file, remedy=remedy)

    def is_finished(self, cell: Cell) -> bool:
        """Whether there is nothing left to do for a cell."""
        record = self.read(cell)
        return record is not None and record.status == "finished"

    def state(self, cell: Cell) -> str:
        """How a cell stands, in words: what says `running` and does not run was interrupted."""
        record = self.read(cell)
        if record is None:
            return "not begun"
        if record.status == "running" and not is_locked(self.lock(cell)):
            return "interrupted"
        return record.status

    def write(self, cell: Cell, record: CellRecord) -> CellRecord:
        """Writes how a cell stands.

        Raises:
            ResourceError: the folder may not be written.
        """
        file = self.file(cell)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, file.parent) from error
        write_json(file, record.to_dict())
        return record
