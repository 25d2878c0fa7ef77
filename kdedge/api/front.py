"""The front of a suite's students: trains, exports and measures them, and says what to deploy."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kdedge.api.bench import Timing
from kdedge.api.export import ExportRequest, make_export
from kdedge.api.keywords import check_keywords
from kdedge.api.recipe import Overrides, set_texts
from kdedge.api.suite import make_suite, open_suite
from kdedge.benchmarking.run import Machine
from kdedge.benchmarking.timing import TimingPlan
from kdedge.config.load import load_recipe, recipe_values
from kdedge.config.suite import override_texts
from kdedge.errors import DataError, KdedgeError, RecipeError, SetupError
from kdedge.files import explain_os_error, highest_number, write_new_numbered_json
from kdedge.fronts.limits import Limits
from kdedge.fronts.reuse import all_precisions, is_as_exported
from kdedge.fronts.students import Student, measure_students
from kdedge.lock import locked
from kdedge.runs.folder import RunFolder
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.contention import QuietWait
from kdedge.runtime.threads import set_up_threads
from kdedge.speed_results import MOST_OTHERS_PERCENT, SpeedResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.fronts.front import Front
    from kdedge.suite.ledger import Ledger, Outcome
    from kdedge.suite.plan import Cell

log = logging.getLogger(__name__)


class FrontOptions(TypedDict, total=False):
    """How the students are exported and timed, and where the files are.

    Attributes:
        overrides: keys of the recipe with other values, such as `{"export.head": "argmax"}`.
        jobs: students to train at the same time.
        seconds: shortest measurement of each file.
        calls: smallest number of calls.
        wait_quiet: longest time in total to wait until other processes leave the cores, in seconds.
        threads: CPU threads; None for one per physical core.
        fronts: folder of all fronts.
        suites: folder of all suites.
    """

    overrides: Overrides
    jobs: int
    seconds: float
    calls: int
    wait_quiet: float
    threads: int | None
    fronts: str | Path
    suites: str | Path


@dataclass(frozen=True)
class Places:
    """Where a front trains and what it writes.

    Attributes:
        fronts: folder of all fronts.
        suites: folder of all suites.
        root: folder of all runs.
        device: torch's, for training and for the export; None for its default.
    """

    fronts: Path
    suites: Path
    root: Path
    device: str | None


@dataclass(frozen=True)
class ExportWish:
    """How the students are exported, besides their recipe's `export`.

    Attributes:
        fp16: make FP16 files.
        int8: make INT8 files, and FP16 ones to compare them with.
        overrides: keys of the recipe with other values, as --set takes them.
    """

    fp16: bool = False
    int8: bool = False
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrontTiming:
    """How the files are timed, at batch 1.

    Attributes:
        seconds: shortest measurement of each file.
        calls: smallest number of calls.
        wait_quiet: longest time in total to wait until other processes leave the cores, in seconds.
        threads: CPU threads; None for each library's default.
    """

    seconds: float = 2.0
    calls: int = 20
    wait_quiet: float | None = None
    threads: int | None = None

    @property
    def plan(self) -> TimingPlan:
        """The plan that the measurement follows."""
        return Timing((1,), self.seconds, self.calls).plan

    def machine(self, machine: Machine) -> Machine:
        """A machine that waits until it is quiet before each measurement."""
        wait = QuietWait(self.wait_quiet or 0.0, most_percent=MOST_OTHERS_PERCENT)
        return replace(machine, wait=wait)


@dataclass(frozen=True)
class Measuring:
    """How and where the files are timed.

    Attributes:
        timing: time per file.
        machine: measures peaks and power.
        command: the command line, for the record.
    """

    timing: FrontTiming
    machine: Machine
    command: str


def front(
    suite: str | Path,
    *,
    max_ms: float | None = None,
    min_accuracy: float | None = None,
    fp16: bool = False,
    int8: bool = False,
    root: str | Path = "runs",
    device: str | None = None,
    **options: Unpack[FrontOptions],
) -> Front:
    """Compares the exported students of a suite, and says which one to deploy.

    Trains what the suite lacks, exports each row, and times all files against each other on this
    machine. `fronts/NAME` gets `front.json`, `front.md`, `front.csv` and plots. A second call
    continues an interrupted one, and measures again.

    Args:
        suite: the suite's YAML file, with one recipe; of each row, its first seed is exported.
        max_ms: deploy the most accurate file within this median latency, ms.
        min_accuracy: deploy the fastest file with at least this accuracy, percent.
        fp16: make FP16 files.
        int8: make INT8 files, and FP16 ones to compare them with.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        options: `overrides` (keys of the recipe for the export), `jobs` (students to train at the
            same time), `seconds` and `calls` (shortest measurement of a file), `wait_quiet`
            (longest wait for a quiet machine, in seconds), `threads`, `fronts` and `suites`
            (folders of all fronts and suites).

    Returns:
        The front, printed as a table; `chosen` is the row to deploy. Rows whose times are in doubt
        or that missed their gates are marked and not ranked.

    Raises:
        GateError: no file is within the limits; the message names the nearest.
        CellsFailed: some rows could not be trained; the others are in the front.
        RecipeError: the suite, one of its recipes or a number is wrong.
        SetupError: a package or the device is missing.
        InUseError: another process works on this front or suite.
        ResourceError: the front's folder cannot be written.
    """
    check_keywords(options, FrontOptions.__annotations__)
    timing = FrontTiming(
        options.get("seconds", FrontTiming.seconds),
        options.get("calls", FrontTiming.calls),
        options.get("wait_quiet"),
        options.get("threads"),
    )
    if timing.calls < 3 or not timing.seconds > 0:
        raise RecipeError(
            f"calls is {timing.calls} and seconds is {timing.seconds:g}. Give 3 calls or more, and"
            " more than 0 seconds."
        )
    set_up_threads(timing.threads)
    places = Places(
        Path(options.get("fronts", "fronts")),
        Path(options.get("suites", "suites")),
        Path(root),
        device,
    )
    ledger = open_front(Path(suite), places)
    wish = ExportWish(fp16, int8, tuple(set_texts(options.get("overrides"))))
    made = make_suites_front(
        ledger,
        places,
        wish,
        Measuring(timing, Machine(), shlex.join(sys.argv)),
        limits=Limits(max_ms, min_accuracy),
        n_jobs=options.get("jobs", 1),
    )
    check_front(made, ledger)
    return made


def open_front(file: Path, places: Places) -> Ledger:
    """Reads a suite and plans its cells.

    Raises:
        RecipeError: the suite is wrong, or has several recipes.
        MissingPackage: the extra `report` is not installed.
    """
    from kdedge.fronts import write  # noqa: F401 - its plots need a package, before the training

    ledger = open_suite(file, places.suites, places.root)
    plan = ledger.plan
    known = (*plan.recipes, *plan.sources)
    if len(known) > 1:
        raise RecipeError(
            f"{file} has the recipes {', '.join(known)}, but a front compares the students of one:"
            " accuracies on different images cannot be compared.\n"
            "  Write a suite with one recipe and no trained_on."
        )
    return ledger


def _check_export(ledger: Ledger, wish: ExportWish) -> None:
    """Checks before the training whether files of the wanted precisions can be made.

    Raises:
        RecipeError: an override is wrong.
        SetupError: a package is missing.
    """
    from kdedge.targets.onnx import build

    build.check_environment()
    precisions = ExportRequest(None, fp16=wish.fp16, int8=wish.int8).precisions
    for cell in ledger.plan.cells:
        recipe = load_recipe(cell.loaded.recipe, wish.overrides).recipe
        for precision in all_precisions(precisions, recipe):
            build.plan(precision)


def make_suites_front(
    ledger: Ledger,
    places: Places,
    wish: ExportWish,
    measuring: Measuring,
    *,
    limits: Limits,
    n_jobs: int,
) -> Front:
    """Trains what a suite lacks, exports and measures its rows, and writes the front.

    Args:
        ledger: of `open_front`.
        places: where it trains and writes.
        wish: how the students are exported.
        measuring: how their files are timed.
        limits: what the file to deploy must reach.
        n_jobs: largest number of cells that are trained at the same time.

    Raises:
        KdedgeError: no row could be trained and exported; it is the first one's error.
        RecipeError: an override is wrong.
        SetupError: a package for the export is missing.
        Interrupted: a signal arrived during the training.
        InUseError: another process works on this front or suite.
        ResourceError: a folder cannot be written.
    """
    from kdedge.fronts.front import Source, make_front
    from kdedge.fronts.write import write_front

    _check_export(ledger, wish)
    suite = ledger.plan.loaded
    folder = front_folder(ledger, places)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    remedy = "Wait for that front or stop it; finished runs and exports are kept."
    with locked(folder / ".lock", remedy=remedy):
        make_suite(ledger, places.root, places.device, n_jobs=n_jobs)
        students = _exported(ledger, places, wish)

        def keep(speed: SpeedResult) -> Path:
            return write_new_numbered_json(folder / "bench", speed.to_dict())

        speed = measure_students(
            students,
            measuring.timing.plan,
            n_threads=measuring.timing.threads,
            command=measuring.command,
            machine=measuring.timing.machine(measuring.machine),
            when_interrupted=keep,
        )
        source = Source(suite.suite.name, suite.path, keep(speed))
        made = make_front(students, speed, limits=limits, source=source)
        write_front(folder, made)
    return made


def front_folder(ledger: Ledger, places: Places) -> Path:
    """The folder of a suite's front."""
    return places.fronts / ledger.plan.loaded.suite.name


def check_front(made: Front, ledger: Ledger) -> None:
    """Checks that a file is within the limits, and that all rows were trained.

    Raises:
        GateError: no file is within the limits.
        CellsFailed: some rows were not trained.
    """
    from kdedge.suite.run import check_failed

    made.check()
    check_failed(ledger)


def _exported(ledger: Ledger, places: Places, wish: ExportWish) -> list[Student]:
    """Exports the first seed of each row; a row that cannot be exported gets the reason.

    Raises:
        KdedgeError: no row has an artifact.
    """
    from kdedge.suite.run import check_failed

    plan, outcomes = ledger.plan, ledger.outcomes()
    (recipe,) = plan.recipes
    students: list[Student] = []
    errors: list[Exception] = []
    for row in plan.loaded.suite.methods:
        cell = plan.of(recipe, row.name)[0]
        student = _student(cell, outcomes[cell])
        if student.problem is None:
            try:
                artifact = _artifact(cell, student, places, wish)
                student = replace(student, artifact=artifact)
            except (KdedgeError, RuntimeError, MemoryError) as error:
                log.warning("%s cannot be exported: %s", row.name, error)
                errors.append(error)
                why = f"it cannot be exported: {str(error).partition(chr(10))[0]}"
                student = replace(student, problem=why)
        students.append(student)
    if all(student.artifact is None for student in students):
        check_failed(ledger)
        if errors:
            raise errors[0]
        raise RecipeError(
            f"{plan.loaded.path} has no row that is trained, so there is nothing to export.\n"
            "  Add a student: - {name: PromptKD, method: promptkd}"
        )
    return students


def _student(cell: Cell, outcome: Outcome) -> Student:
    """A row before its export."""
    if cell.is_zero_shot:
        return Student(cell.row, problem="it is zero-shot CLIP, which has no run to export")
    if outcome.run is None:
        lines = () if outcome.failure is None else outcome.failure.last_lines
        why = f": {lines[0].removeprefix('kdedge: ')}" if lines else ""
        return Student(cell.row, problem=f"its training failed{why}")
    return Student(cell.row, outcome.run, outcome.result)


def _artifact(cell: Cell, student: Student, places: Places, wish: ExportWish) -> Artifact:
    """The newest artifact of a student's run if it is what an export would make, else a new one."""
    from kdedge.suite.plan import measuring_overrides

    assert student.run is not None
    assert student.result is not None
    values = recipe_values(cell.loaded.recipe)
    changes = override_texts({key: values[key] for key in ("export", "gates")})
    changes += [*measuring_overrides(cell.loaded.recipe), *wish.overrides]
    request = ExportRequest(str(student.run), fp16=wish.fp16, int8=wish.int8)
    run = RunFolder.open(student.run)
    newest = highest_number(run.exports)
    if newest is not None:
        recipe = load_recipe(run.recipe, changes).recipe
        try:
            artifact = load_artifact(newest)
        except (DataError, SetupError) as error:
            log.warning("%s\n  Exporting %s again.", error, run.name)
        else:
            if is_as_exported(artifact, recipe, request.precisions, student.result):
                log.info("%s: its files in %s are used.", cell.row, newest)
                return artifact
    log.info("%s: exporting %s.", cell.row, run.path)
    made = make_export(
        request, {"overrides": changes, "root": places.root, "device": places.device}
    )
    return made.artifact
