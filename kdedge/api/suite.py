"""A grid of recipes, methods and seeds, and its exported students on a Pareto front."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.export import export
from kdedge.benchmarking.artifact_subjects import artifact_subjects
from kdedge.benchmarking.run import Machine, run_bench
from kdedge.benchmarking.tables import machine as machine_text
from kdedge.benchmarking.tables import pareto_front
from kdedge.benchmarking.timing import TimingPlan
from kdedge.errors import GateError, KdedgeError
from kdedge.files import highest_number, write_atomic, write_json, write_new_numbered_json
from kdedge.records import Record
from kdedge.runs.folder import RunFolder
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.setup.packages import need_training_packages
from kdedge.speed_results import SpeedRow
from kdedge.tables import Table, Tabled, figure, markdown_table, percent

if TYPE_CHECKING:
    from kdedge.suite.ledger import Ledger
    from kdedge.suite.plan import Cell


_LOG = logging.getLogger(__name__)


def run_suite(
    file: str | Path,
    *,
    suites: str | Path = "suites",
    jobs: int = 1,
    root: str | Path = "runs",
    device: str | None = None,
    export: bool = False,
    show: Callable[[Ledger, ExportedStudents | None], object] = lambda *_: None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Runs a suite: recipes x methods x seeds, each cell in its own process.

    A second call continues: it finds finished runs again, resumes interrupted ones and runs failed
    cells again. After each cell the table is written to `suites/NAME`: `table.md`, `table.csv`,
    `results.json`.

    Args:
        file: the suite's YAML file.
        suites: folder of all suites.
        jobs: cells to run at the same time.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        export: export the first finished run of each row, and time all files against each other.
        show: called with the cells' outcomes and what was exported, before the error of a failed
            cell is raised.
        machine: for tests: how pauses are made and power is measured.

    Returns:
        The content of `results.json`: `lines`, one for each recipe and method, with means, spreads
        and the paper's figures; and `cells`, with each cell's status and run. With `export`, also
        `exported`: the files with accuracy, latency, size, and whether they are on the Pareto
        front.

    Raises:
        CellsFailed: some cells failed; the others are finished and in the table.
        RecipeError: the suite or one of its recipes is wrong.
        SetupError: torch or the device is missing.
        ResourceError: the suite's folder cannot be written.
    """
    ledger = _open(Path(file), Path(suites), Path(root))
    from kdedge.suite.runner import check_failed, run_cells
    from kdedge.suite.tables import make_lines, to_record, write_tables

    def write() -> None:
        write_tables(ledger.folder.path, ledger.plan, ledger.outcomes())

    run_cells(ledger, root=Path(root), device=device, n_jobs=jobs, after_each=write)
    write()
    made = None
    if export:
        made = export_students(ledger, Path(root), device, machine=machine or Machine())
    show(ledger, made)
    check_failed(ledger)
    outcomes = ledger.outcomes()
    record = to_record(ledger.plan, outcomes, make_lines(ledger.plan, outcomes))
    return record if made is None else {**record, "exported": made.to_dict()}


def _open(file: Path, suites: Path, root: Path, *, is_read_only: bool = False) -> Ledger:
    """Reads a suite and plans its cells, without looking at their state."""
    need_training_packages("Training")
    from kdedge.config.suite import load_suite
    from kdedge.suite.ledger import Ledger, SuiteFolder
    from kdedge.suite.plan import make_plan

    plan = make_plan(load_suite(file))
    folder = SuiteFolder(suites / plan.loaded.suite.name)
    return Ledger(plan, folder, root.absolute(), is_read_only=is_read_only)


def look_at_suite(file: Path, suites: Path, root: Path) -> Ledger:
    """Finds the state of each cell of a suite, and runs none."""
    writes_nothing = not (root / ".cache").is_dir()
    ledger = _open(file, suites, root, is_read_only=writes_nothing)
    if root.is_dir() or ledger.folder.path.is_dir():
        if writes_nothing:
            _LOG.info("Reading all images once to find out which cells are finished.")
        ledger.look()
    return ledger


HEADER = ["student", "file", "on the front", "%", "HM", "ms", "MB", "GFLOPs"]


@dataclass(frozen=True)
class ExportedFile(Record):
    """A file of a student.

    Attributes:
        student: the suite's row, after the recipe if there are several.
        file: the file, with its folder.
        precision: of weights and arithmetic.
        gate: whether it passed its recipe's gates.
        images: hash of the labeled images of its comparison; None without labels.
        accuracy: its accuracy on them over all class names, percent.
        harmonic_mean: of the student's base and novel accuracy before the export, percent.
        p50_ms: median latency at batch 1.
        n_bytes: size of the file.
        gflops: operations per image, 1e9, 2 per multiply-add.
        is_on_front: whether no other file of the same images is as fast and as accurate, and better
            in one.
        doubt: why it is not ranked; None if it is.
    """

    student: str
    file: str
    precision: str
    gate: str
    images: str | None
    accuracy: float | None
    harmonic_mean: float | None
    p50_ms: float | None
    n_bytes: int
    gflops: float | None
    is_on_front: bool = False
    doubt: str | None = None


@dataclass(frozen=True)
class ExportedStudents(Record, Tabled):
    """The files of a suite's students, the fastest first.

    Attributes:
        suite: the suite's name.
        measurements: the file with every timed call.
        machine: where they were timed, and when.
        files: with their figures.
        left_out: row -> why it has no files.
    """

    suite: str
    measurements: str
    machine: str
    files: tuple[ExportedFile, ...]
    left_out: dict[str, str]

    def table(self) -> Table:
        """The figures of each file."""
        rows = [
            [
                *(one.student, Path(one.file).name, "yes" if one.is_on_front else ""),
                *(percent(one.accuracy), percent(one.harmonic_mean)),
                f"{figure(one.p50_ms)}{'!' if one.doubt else ''}",
                *(figure(one.n_bytes, 1e6), figure(one.gflops)),
            ]
            for one in self.files
        ]
        return HEADER, rows

    @property
    def notes(self) -> list[str]:
        """What the figures are, and why files are not ranked."""
        doubts = [f"! {x.student}, {Path(x.file).name}: {x.doubt}" for x in self.files if x.doubt]
        return [
            "%: the file's accuracy over all names, on the images of its comparison. HM: the"
            f" student's harmonic mean. ms: median at batch 1, in turns. {self.machine}.",
            *doubts,
            *(f"{row} is left out: {why}" for row, why in self.left_out.items()),
        ]

    def to_markdown(self) -> str:
        """The table and its notes."""
        header, rows = self.table()
        table = markdown_table(header, rows, align="lll" + "r" * (len(header) - 3))
        return "\n".join([table, "", *(f"* {note}" for note in self.notes), ""])

    def _table(self) -> Table:
        return self.table()

    def _notes(self) -> list[str]:
        return self.notes


def export_students(
    ledger: Ledger, root: Path, device: str | None, *, machine: Machine
) -> ExportedStudents:
    """Exports the first finished seed of each row, and times all files against each other.

    A run's newest artifact is used if it has one. `exported.json` and `exported.md` are written
    into the suite's folder.

    Args:
        ledger: of the suite, whose cells have run.
        root: folder of all runs.
        device: torch's, for the export.
        machine: measures power, and watches other processes.

    Raises:
        KdedgeError: no row could be exported and measured; it is the first one's error.
    """
    artifacts: dict[str, tuple[Cell, Artifact]] = {}
    left_out: dict[str, str] = {}
    first: KdedgeError | None = None
    for label, cell in _cells(ledger):
        run = ledger.outcomes()[cell].run
        if run is None:
            left_out[label] = "it has no finished run"
            continue
        try:
            artifacts[label] = cell, _artifact(run, root, device)
        except KdedgeError as error:
            _LOG.warning("%s cannot be exported: %s", label, error)
            first = first or error
            left_out[label] = str(error).partition("\n")[0]
    if not artifacts:
        raise first or KdedgeError(f"{ledger.plan.loaded.path} has no run to export.")
    subjects = [
        dataclasses.replace(subject, source=label)
        for label, (_, artifact) in artifacts.items()
        for subject in artifact_subjects(artifact, n_threads=None)
    ]
    speed = run_bench(
        subjects,
        plan=TimingPlan(),
        batches=(1,),
        n_threads=None,
        left_out=left_out,
        command=shlex.join(sys.argv),
        machine=machine,
        when_interrupted=lambda _: None,
    )
    folder = ledger.folder.path
    files = [
        _file(row, artifacts[row.source][1], ledger, artifacts[row.source][0]) for row in speed.rows
    ]
    made = ExportedStudents(
        suite=ledger.plan.loaded.suite.name,
        measurements=str(write_new_numbered_json(folder / "bench", speed.to_dict())),
        machine=f"{machine_text(speed)}, {speed.measured_at}",
        files=tuple(_with_front(files)),
        left_out=dict(speed.left_out),
    )
    write_json(folder / "exported.json", made.to_dict())
    write_atomic(folder / "exported.md", made.to_markdown().encode())
    return made


def _cells(ledger: Ledger) -> Iterator[tuple[str, Cell]]:
    """A finished cell of each row, of the first such seed, or its first one; and its label."""
    plan, outcomes = ledger.plan, ledger.outcomes()
    for recipe in plan.recipes:
        for row in plan.loaded.suite.methods:
            cells = [cell for cell in plan.of(recipe, row.name) if not cell.is_zero_shot]
            if cells:
                finished = [cell for cell in cells if outcomes[cell].run is not None]
                label = row.name if len(plan.recipes) == 1 else f"{recipe}, {row.name}"
                yield label, (finished or cells)[0]


def _artifact(run: Path, root: Path, device: str | None) -> Artifact:
    """The run's newest artifact, or a new one by its recipe."""
    folder = RunFolder.open(run)
    if highest_number(folder.exports) is None:
        with contextlib.suppress(GateError):  # the file is marked, and not ranked
            return export(run, root=root, device=device)
    newest = highest_number(folder.exports)
    assert newest is not None
    return load_artifact(newest)


def _file(row: SpeedRow, artifact: Artifact, ledger: Ledger, cell: Cell) -> ExportedFile:
    """The figures of a measured file."""
    file = artifact.file(row.model)
    found, gmacs = row.alone(1), row.gmacs(1)
    result, parity = ledger.outcomes()[cell].result, file.parity
    doubt = row.problem or (None if found is None else found.doubt)
    if found is None:
        doubt = doubt or "it was not measured at batch 1"
    elif file.gate == "missed":
        doubt = "it missed its gates"
    elif parity is None or not parity.n_labeled:
        doubt = doubt or "its accuracy is unknown"
    return ExportedFile(
        student=row.source,
        file=str(artifact.path / file.name),
        precision=file.precision,
        gate=file.gate,
        images=None if parity is None else parity.images_hash,
        accuracy=None if parity is None else parity.accuracy_percent,
        harmonic_mean=None if result is None else result.harmonic_mean,
        p50_ms=None if found is None else found.p50_ms,
        n_bytes=file.n_bytes,
        gflops=None if gmacs is None else 2 * gmacs,
        doubt=doubt,
    )


def _with_front(files: list[ExportedFile]) -> list[ExportedFile]:
    """The files by latency, with the Pareto front of each set of images marked."""
    best: set[int] = set()
    for images in {one.images for one in files}:
        ranked = [i for i, x in enumerate(files) if x.images == images and x.doubt is None]
        points = [(files[i].p50_ms or 0.0, files[i].accuracy or 0.0) for i in ranked]
        best |= {ranked[i] for i in pareto_front(points)}
    marked = [dataclasses.replace(x, is_on_front=i in best) for i, x in enumerate(files)]
    return sorted(marked, key=lambda one: (one.p50_ms is None, one.p50_ms))
