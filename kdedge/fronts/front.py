"""A front: the exported students of a suite by accuracy and cost, and what to deploy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.errors import GateError
from kdedge.fronts.choose import answer, choose
from kdedge.fronts.limits import Limits
from kdedge.fronts.rows import FrontRow, make_rows, shared_images
from kdedge.fronts.students import Student
from kdedge.records import Record
from kdedge.reporting.numbers import figure, percent
from kdedge.reporting.speed import machine
from kdedge.speed_results import SpeedResult
from kdedge.tables import Table, Tabled


@dataclass(frozen=True)
class Source:
    """Where a front comes from.

    Attributes:
        suite: the suite's name.
        suite_file: its file.
        measurements: file with every timed call.
    """

    suite: str
    suite_file: Path
    measurements: Path


@dataclass(frozen=True)
class Front(Record, Tabled):
    """The exported students of a suite by accuracy and latency.

    Attributes:
        suite: name of the suite.
        suite_file: its file.
        measurements: file with every timed call.
        command: as it was typed.
        measured_at: when the latencies were measured, ISO 8601.
        machine: where.
        accuracy_name: which accuracy the rows have.
        images: describes the images of the accuracy; None if none is known.
        max_ms: the wanted latency; None if none was given.
        min_accuracy: the wanted accuracy, percent; None if none was given.
        deploy: label of the file to deploy; None if there are no limits, or no file within them.
        answer: what to deploy, in one line; without limits, the files on the front.
        rows: the ranked files by latency, then the others.
    """

    suite: str
    suite_file: str
    measurements: str
    command: str
    measured_at: str
    machine: str
    accuracy_name: str
    images: str | None
    max_ms: float | None
    min_accuracy: float | None
    deploy: str | None
    answer: str
    rows: tuple[FrontRow, ...]

    @property
    def chosen(self) -> FrontRow | None:
        """The file to deploy; None without one."""
        return next((row for row in self.rows if row.label == self.deploy), None)

    @property
    def caption(self) -> str:
        """What the figures are and where they were measured."""
        images = "" if self.images is None else f", on {self.images}"
        return (
            f"%: {self.accuracy_name}{images}. ms: median latency at batch 1; files were timed in"
            f" turns. {self.machine}, {self.measured_at}."
        )

    @property
    def notes(self) -> list[str]:
        """Why rows are not ranked, and what to do about times in doubt."""
        lines = [f"{row.label}: {row.why_unranked}" for row in self.rows if row.why_unranked]
        if any(row.doubt is not None for row in self.rows):
            lines.append(
                "! Times in doubt are not ranked. On a quiet machine, run the same command with"
                " --wait-quiet 60."
            )
        return lines

    def check(self) -> None:
        """Checks that a file is within the limits, if there are any.

        Raises:
            GateError: none is; the message names the nearest.
        """
        if self.deploy is not None or (self.max_ms, self.min_accuracy) == (None, None):
            return
        remedy = f"Allow more time or less accuracy, or add another student to {self.suite_file}."
        if all(row.why_unranked for row in self.rows):
            remedy = self.notes[-1]
        raise GateError(f"{self.answer}\n  {remedy}")

    def table(self) -> Table:
        """Accuracy, latency, size and work of each row."""
        header = ["student", "on the front", "%", "ms", "MB", "GFLOPs", "M param."]
        rows = [
            [
                row.label,
                "yes" if row.is_on_front else "missed gate" if row.gate == "missed" else "",
                percent(row.accuracy),
                f"{figure(row.p50_ms)}{'!' if row.doubt else ''}",
                *(figure(row.n_bytes, 1e6), figure(row.gflops), figure(row.n_parameters, 1e6)),
            ]
            for row in self.rows
        ]
        return header, rows

    def _table(self) -> Table:
        return self.table()

    def _notes(self) -> list[str]:
        return [*self.notes, self.answer]


def make_front(
    students: Sequence[Student], speed: SpeedResult, *, limits: Limits, source: Source
) -> Front:
    """Makes the front from the measurements of the students' files.

    Args:
        students: in the suite's order.
        speed: the measurements of `measure_students`.
        limits: what the file to deploy must reach.
        source: the suite, and the file of the measurements.
    """
    images = shared_images(speed)
    rows, accuracy_name = make_rows(students, speed, images)
    ranked = [row for row in rows if row.why_unranked is None]
    chosen = choose(ranked, limits)
    return Front(
        suite=source.suite,
        suite_file=str(source.suite_file),
        measurements=str(source.measurements),
        command=speed.command,
        measured_at=speed.measured_at,
        machine=machine(speed),
        accuracy_name=accuracy_name,
        images=None if images is None else images.images_text,
        max_ms=limits.max_ms,
        min_accuracy=limits.min_accuracy,
        deploy=None if chosen is None else chosen.label,
        answer=answer(ranked, limits),
        rows=tuple(rows),
    )
