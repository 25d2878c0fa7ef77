"""The students of a front, and the measurement of all their files against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.benchmarking.artifact_subjects import artifact_subjects
from kdedge.benchmarking.run import Machine, run_bench
from kdedge.benchmarking.subject import Subject
from kdedge.benchmarking.timing import TimingPlan
from kdedge.results import EvalResult
from kdedge.runtime.artifact import Artifact
from kdedge.speed_results import Accuracy, SpeedResult


@dataclass(frozen=True)
class Student:
    """A row of the suite with its exported files.

    Attributes:
        name: the row's label.
        run: folder of its run; None if it has none.
        result: its accuracies on the test images.
        artifact: its files; None if it could not be exported.
        problem: why there is none; None if there is one.
    """

    name: str
    run: Path | None = None
    result: EvalResult | None = None
    artifact: Artifact | None = None
    problem: str | None = None


def model_name(student: Student, file: str) -> str:
    """A file's name in the measurements, unique among those of all students."""
    return f"{student.name}: {file}"


def measure_students(
    students: Sequence[Student],
    plan: TimingPlan,
    *,
    n_threads: int | None,
    command: str,
    machine: Machine,
    when_interrupted: Callable[[SpeedResult], object],
) -> SpeedResult:
    """Times the files of all students against each other, at batch 1.

    Args:
        students: at least one of them has an artifact.
        plan: how long each file is timed.
        n_threads: CPU threads; None for each library's default.
        command: the command line, for the record.
        machine: see `run_bench`.
        when_interrupted: see `run_bench`.

    Raises:
        KdedgeError: no file could be measured; it is the first one's error.
    """
    return run_bench(
        [one for student in students for one in _subjects(student, n_threads)],
        plan=plan,
        batches=(1,),
        n_threads=n_threads,
        left_out={},
        command=command,
        machine=machine,
        when_interrupted=when_interrupted,
    )


def _subjects(student: Student, n_threads: int | None) -> Iterator[Subject]:
    if student.artifact is None:
        return
    for found in artifact_subjects(student.artifact, n_threads=n_threads):
        subject = dataclasses.replace(found, model=model_name(student, found.model))
        yield _as_the_student(subject, student)


def _as_the_student(subject: Subject, student: Student) -> Subject:
    """Gives a float32 file its student's accuracies if both agree on all compared images."""
    known = subject.accuracy
    is_equal = subject.precision == "fp32" and known is not None and known.agreement == 100
    if student.result is None or not is_equal:
        return subject
    accuracy = Accuracy.of_run(student.result, str(student.run))
    return dataclasses.replace(subject, accuracy=accuracy, on_compared=known)
