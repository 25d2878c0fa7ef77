"""The rows of a front: each file's accuracy and cost, and which are on the Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdedge.fronts.students import Student, model_name
from kdedge.records import Percent, Record
from kdedge.reporting.front import shared_accuracy
from kdedge.reporting.numbers import figure, percent
from kdedge.reporting.pareto import pareto_front
from kdedge.reporting.speed import model_alone
from kdedge.runtime.model_file import ModelFile
from kdedge.speed_results import Accuracy, SpeedResult, SpeedRow, accuracy_sets


@dataclass(frozen=True)
class FrontRow(Record):
    """An exported file of a student, or a student without files.

    Attributes:
        label: its name, unique in the front.
        student: the row of the suite.
        run: folder of its run; None without one.
        artifact: folder of its files.
        file: the file's name.
        precision: of weights and arithmetic.
        runtime: what ran it.
        accuracy: percent, of the kind and on the images that the front names; None if unknown.
        p50_ms: median latency at batch 1; None if it was not measured.
        n_bytes: size of the file.
        gflops: operations per image, 1e9, 2 per multiply-add; None if not counted.
        n_parameters: numbers that it holds.
        student_harmonic_mean: of the student's base and novel accuracy before the export, percent.
        student_all: the student's accuracy over all class names, percent.
        gate: whether it passed its recipe's gates.
        is_on_front: whether no other ranked file is as fast and as accurate, and better in one.
        doubt: why other programs may have disturbed its time; None if nothing suggests it.
        why_unranked: why it is neither ranked nor named for deployment; None if it is ranked.
    """

    label: str
    student: str
    run: str | None
    artifact: str | None = None
    file: str | None = None
    precision: str | None = None
    runtime: str | None = None
    accuracy: Percent | None = None
    p50_ms: float | None = None
    n_bytes: int | None = None
    gflops: float | None = None
    n_parameters: int | None = None
    student_harmonic_mean: Percent | None = None
    student_all: Percent | None = None
    gate: str | None = None
    is_on_front: bool = False
    doubt: str | None = None
    why_unranked: str | None = None

    @property
    def figures(self) -> str:
        """Its accuracy and latency in words."""
        return f"{percent(self.accuracy)} %, {figure(self.p50_ms)} ms"


def shared_images(speed: SpeedResult) -> Accuracy | None:
    """An accuracy on the images that most files were measured on; None if none is known."""
    sets = accuracy_sets(speed.rows)
    n_known = [
        sum(row.accuracy_beside(images) is not None for row in speed.rows) for images in sets
    ]
    return sets[n_known.index(max(n_known))] if sets else None


def make_rows(
    students: Sequence[Student], speed: SpeedResult, images: Accuracy | None
) -> tuple[list[FrontRow], str]:
    """Makes the rows, the ranked ones first by latency; and the name of their accuracy.

    It is the harmonic mean of base and novel if every file has one on the images, else the accuracy
    over all class names.

    Args:
        students: in the suite's order.
        speed: the measurements of `measure_students`.
        images: from `shared_images`.
    """
    known = {
        row.model: found
        for row in speed.rows
        if images is not None and (found := row.accuracy_beside(images)) is not None
    }
    key, accuracy_name = shared_accuracy(list(known.values()))
    measured = {row.model: row for row in speed.rows}
    rows = []
    for student in students:
        files = () if student.artifact is None else student.artifact.files
        for file in files:
            name = model_name(student, file.name)
            accuracy = getattr(known.get(name), key, None)
            why = speed.left_out.get(name) or speed.left_out.get(f"{name}, batch 1")
            rows.append(_row(student, file, measured.get(name), accuracy, why))
        if not files:
            rows.append(_without_files(student))
    return _marked(_labeled(rows)), accuracy_name


def _without_files(student: Student) -> FrontRow:
    result = student.result
    return FrontRow(
        label=student.name,
        student=student.name,
        run=None if student.run is None else str(student.run),
        student_harmonic_mean=None if result is None else result.harmonic_mean,
        student_all=None if result is None else result.all,
        why_unranked=student.problem,
    )


def _row(
    student: Student,
    file: ModelFile,
    measured: SpeedRow | None,
    accuracy: float | None,
    left_out: str | None,
) -> FrontRow:
    """The row of a file; `left_out` says why it was not measured at batch 1."""
    assert student.artifact is not None
    row = replace(
        _without_files(student),
        artifact=str(student.artifact.path),
        file=file.name,
        precision=file.precision,
        n_bytes=file.n_bytes,
        gate=file.gate,
    )
    if measured is None:
        why = left_out or f"kdedge bench does not run files of {file.target}"
        return replace(row, why_unranked=why)
    found, gmacs = model_alone(measured, 1), measured.gmacs(1)
    row = replace(
        row,
        runtime=measured.runtime,
        accuracy=accuracy,
        p50_ms=None if found is None else found.p50_ms,
        gflops=None if gmacs is None else 2 * gmacs,
        n_parameters=measured.n_parameters,
        doubt=None if found is None else found.doubt,
    )
    return replace(row, why_unranked=measured.problem or _why_unranked(row, left_out))


def _why_unranked(row: FrontRow, left_out: str | None) -> str | None:
    if row.p50_ms is None:
        return left_out or "it was not measured at batch 1"
    if row.gate == "missed":
        return "it missed the recipe's gates"
    if row.accuracy is None:
        return "its accuracy on the images of the others is unknown"
    return None if row.doubt is None else f"its time is in doubt: {row.doubt}"


def _labeled(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """Names each row by its student, with the precision or the file if the student has several."""
    of_student = Counter(row.student for row in rows)
    of_precision = Counter((row.student, row.precision) for row in rows)
    labeled = []
    for row in rows:
        label = row.student
        if of_student[row.student] > 1:
            is_alone = of_precision[row.student, row.precision] == 1
            label = f"{row.student}, {row.precision if is_alone else row.file}"
        labeled.append(replace(row, label=label))
    return labeled


def _marked(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The ranked rows by latency, with the Pareto front marked, and then the others."""
    ranked = [row for row in rows if row.why_unranked is None]
    points = [(row.p50_ms or 0.0, row.accuracy or 0.0) for row in ranked]
    front = set(pareto_front(points))
    marked = [replace(row, is_on_front=i in front) for i, row in enumerate(ranked)]
    marked.sort(key=lambda row: row.p50_ms or 0.0)
    return [*marked, *(row for row in rows if row.why_unranked is not None)]
