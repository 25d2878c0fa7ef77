"""Lines about a student: its accuracy, operations saved, the file, and whether to deploy it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdedge.deploy.parity import failed_gates
from kdedge.deploy.ship import FileToShip, file_to_ship
from kdedge.files import highest_number
from kdedge.messages import name_some
from kdedge.records.evaluation import (
    EvalDetails,
    EvalResult,
    ParityResult,
    UnlabeledResult,
    are_same_images,
    on_same_images,
)
from kdedge.records.record import if_readable
from kdedge.records.speed import SpeedResult, read_speed
from kdedge.records.tables import figure, images_text
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_unlabeled, stored_details, stored_evaluation
from kdedge.runtime.artifact import Artifact, Precision, load_artifact

_FEW_TEST_IMAGES = 1000  # with fewer, chance moves an accuracy by more than about three points
_FEW_OF_A_CLASS = 30  # with fewer, its interval is at least about 30 points wide
_GOOD_PERCENT = 95  # from here on, more labels are no longer the first advice
_SIGNIFICANT_ANSWERS = 6  # fewer right answers more may be chance (`_gain`)


class Verdict(NamedTuple):
    """Whether to deploy a student.

    Attributes:
        kind: what it comes to; `labels alone`: the same network, trained on the labels alone, is
            measurably better.
        text: a sentence with its reason.
    """

    kind: Literal["deploy", "labels alone", "do not deploy", "unknown"]
    text: str


@dataclass(frozen=True)
class ModelRecords:
    """The records of a run that its headline and its verdict rest on; empty or None if missing.

    Attributes:
        run: the run's folder.
        results: accuracies, by model.
        details: confusions and calibration, by model.
        unlabeled: measurements without labels.
        artifact: the newest export.
        speed: the newest speed measurement.
    """

    run: RunFolder
    results: Mapping[str, EvalResult]
    details: Mapping[str, EvalDetails]
    unlabeled: UnlabeledResult | None
    artifact: Artifact | None
    speed: SpeedResult | None

    @cached_property
    def ship(self) -> FileToShip | None:
        """The file to ship."""
        return None if self.artifact is None else file_to_ship(self.artifact, self.speed)

    @property
    def comparable(self) -> Mapping[str, EvalResult]:
        """The results on the same images as the result of the run's own model."""
        return on_same_images(self.results, self.results.get(self.run.role))


def model_records(run: RunFolder) -> ModelRecords:
    """Reads the records; damaged ones are left out, and what only a student's verdict needs."""
    results, unlabeled = stored_evaluation(run), if_readable(read_unlabeled, run)
    if run.role != "student":
        return ModelRecords(run, results, {}, unlabeled, None, None)
    exported, measured = run.newest_export, newest_speed(run)
    return ModelRecords(
        run,
        results=results,
        details=stored_details(run),
        unlabeled=unlabeled,
        artifact=None if exported is None else if_readable(load_artifact, exported),
        speed=None if measured is None else if_readable(read_speed, measured),
    )


def conclusion_of(records: ModelRecords) -> list[str]:
    """The headline of a run and the text of its verdict, if there are any."""
    verdict = verdict_of(records)
    return [*filter(None, [headline_of(records), verdict and verdict.text])]


def headline_of(records: ModelRecords) -> str | None:
    """Returns the headline of a run, one sentence a line; None if its records compare nothing."""
    if records.run.role != "student":
        return None
    student = records.results.get("student")
    model, judged = judged_model(student, records.ship)
    facts, is_loss = ([], False) if judged is None else _accuracy(judged, records.comparable)
    if student is None:
        facts += _agreement(records.unlabeled)
    elif judged is not None and judged != student:
        points = judged.all - student.all
        compared = f"{_apart(points)} the student" if points else "as often as the student"
        facts.append(f"{compared} before export")
    sentences = [f"{model} {', '.join(facts)}."] if facts else []
    if not is_loss:
        of_teacher = _of_teacher(records.run, judged, records.comparable.get("teacher"))
        subject = "It" if facts else model
        sentences += [f"{subject} {of_teacher}."] if of_teacher else []
        sentences += _of_unlabeled(records.run, student, records.comparable.get("labels_alone"))
    if not sentences:
        return None
    if (only := _only_class(records)) is not None:
        sentences.append(f"But it predicts {only!r} for every image.")
    if records.artifact is not None and not is_loss:
        sentences += _files(records.artifact, records.ship)
    return "\n".join(sentences)


def _agreement(unlabeled: UnlabeledResult | None) -> list[str]:
    """How often a student without test images gives its teacher's class, if that is known."""
    if unlabeled is None or unlabeled.agreement_percent is None:
        return []
    images = images_text(unlabeled.n_images)
    return [f"agrees with its teacher on {unlabeled.agreement_percent:.0f} % of {images}"]


def _only_class(records: ModelRecords) -> str | None:
    """The class that the model predicts for every image, if there is one."""
    details = records.details.get(records.run.role)
    exported = {} if records.artifact is None else records.artifact.provenance
    return exported.get("predicts_only") or (None if details is None else details.only_class)


def judged_model(
    student: EvalResult | None, shipped: FileToShip | None
) -> tuple[str, EvalResult | None]:
    """The model that the verdict is about, as it begins a sentence, and its accuracy.

    It is the file to ship, if it was compared on the student's test images and differs on some of
    them; else the student. The file's calibration is not known.
    """
    parity = None if shipped is None else shipped.file.parity
    if (
        student is None
        or student.harmonic_mean is not None
        or shipped is None
        or parity is None
        or not parity.per_class
        or parity.agreement_percent == 100
        or not are_same_images(student, parity)
    ):
        return "The student", student
    result = replace(student, all=parity.accuracy_percent or 0.0, per_class=parity.per_class)
    return f"The file to ship, {shipped.file.name},", result


def verdict_of(records: ModelRecords) -> Verdict | None:
    """Returns whether to deploy a student: on condition of its weakest class's accuracy, at best.

    None where the headline says it already, and with the split base-to-novel, whose classes
    belong to a benchmark.
    """
    run, student = records.run, records.results.get("student")
    if run.role != "student":
        return None
    _, judged = judged_model(student, records.ship)
    if judged is None or student is None:
        if records.unlabeled is None:
            return None
        return Verdict(
            "unknown",
            "Whether to deploy it is not known: put labeled images into a folder for each class,"
            f" and run kdedge eval {shlex.quote(str(run.path))} --set data.test.folder=FOLDER",
        )
    answers = records.details.get("student")
    if answers is None or student.harmonic_mean is not None:
        return None
    if _accuracy(judged, records.comparable)[1]:
        return None
    return (
        _why_not(judged, student, answers)
        or _labels_alone(run, student, records.comparable.get("labels_alone"))
        or Verdict("deploy", _condition(judged, answers) + _doubts(run, answers))
    )


def _why_not(judged: EvalResult, student: EvalResult, answers: EvalDetails) -> Verdict | None:
    """The verdict where one class is all that the test images or the answers show."""
    tested = list(answers.images_per_class)
    if len(tested) == 1:
        return Verdict(
            "unknown",
            "Whether to deploy it is not known: all test images are of one class,"
            f" {tested[0]}. Add images of the others to data.test.",
        )
    if answers.only_class is not None:
        reason = "it predicts one class for every image"
    elif judged.all < (student.largest_class_percent or 0):
        reason = "always answering the most frequent class is right more often"
    else:
        return None
    return Verdict("do not deploy", f"Do not deploy it: {reason}.")


def _labels_alone(run: RunFolder, student: EvalResult, alone: EvalResult | None) -> Verdict | None:
    """The verdict where the same network is measurably better without the unlabeled images."""
    lost = 0.0 if alone is None else alone.all - student.all
    if alone is None or lost < 1 or lost * student.n_images / 100 < _SIGNIFICANT_ANSWERS:
        return None
    return Verdict(
        "labels alone",
        f"Deploy rather the same network with the labels alone: {alone.all:.1f} % right. Train it"
        f" by kdedge train {shlex.quote(str(run.recipe))} --method ridge, and export that run.",
    )


def _condition(judged: EvalResult, answers: EvalDetails) -> str:
    """The accuracy that has to be enough: of all images, and of the weakest class."""
    n_of = answers.images_per_class
    shares = {name: (judged.per_class.get(name) or 0.0) / 100 for name in n_of}
    weakest = min(shares, key=shares.__getitem__)
    n = n_of[weakest]
    n_right = round(shares[weakest] * n_of[weakest])
    if n == n_right:
        low = math.floor(10 * accuracy_interval(answers.n_images, answers.n_images)[0]) / 10
        return (
            f"Deploy it if {low:.1f} % right is enough: {images_text(answers.n_images)}, all of"
            " them right, show no more (95 % interval)."
        )
    if n_right * len(n_of) < n:
        return (
            f"Deploy it only where {weakest} does not matter: {n_right:,} of"
            f" {images_text(n)} of it are right, {judged.all:.1f} % of all."
        )
    facts = "; ".join(filter(None, [f"{n_right:,} of {images_text(n)}", _interval(n_right, n)]))
    return (
        f"Deploy it if {judged.all:.1f} % right is enough, and {100 * n_right / n:.0f} % of its"
        f" weakest class, {weakest} ({facts})."
        f"{' More test images would tell more.' if n < _FEW_OF_A_CLASS else ''}"
    )


def _doubts(run: RunFolder, answers: EvalDetails) -> str:
    """Which classes have no test images, or none that taught the student."""
    tested = answers.images_per_class
    untested = [name for name in answers.class_names if name not in tested]
    doubts = f" No test image shows {name_some(untested)}." if untested else ""
    if unseen := run.read_provenance().summary.closed_form.get("unseen_classes"):
        doubts += f" The teacher takes no unlabeled image for {name_some(unseen)}: add images."
    return doubts


def _accuracy(student: EvalResult, results: Mapping[str, EvalResult]) -> tuple[list[str], bool]:
    """Compares a student with zero-shot CLIP and the most frequent class.

    Args:
        student: its accuracy.
        results: accuracies on the same images, by model.

    Returns:
        What the student does, if anything can be said, and whether zero-shot CLIP is better in
        every respect.
    """
    zero_shot = results.get("zeroshot", student)
    points = mean = student.main_accuracy - zero_shot.main_accuracy
    if student.harmonic_mean is None:  # the harmonic mean is of fewer names at a time
        mean = student.mean_over_classes - zero_shot.mean_over_classes
    if points < 0 and mean <= 0:
        return [f"is {-points:.1f} points below zero-shot CLIP: do not use it"], True
    parts = []
    if student.harmonic_mean is None:  # else no single figure is its accuracy
        interval = _interval(student.all * student.n_images / 100, student.n_images)
        parts.append(f"right on {student.all:.1f} % of {student.n_images:,} test images")
        parts[0] += f" ({interval})" if interval else ""
    if points < 0 or mean < 0:
        first, second = _apart(points), _apart(mean)
        parts.append(f"{first} zero-shot CLIP, and {second} it in the mean over classes")
    elif points:
        parts.append(f"{_apart(points)} zero-shot CLIP")
    largest = student.largest_class_percent
    if largest is not None and student.all < largest and len(student.per_class) > 1:
        missing = largest - student.all
        parts.append(f"{missing:.1f} points below always answering the most frequent class")
    return [f"is {parts[0]}", *parts[1:]] if parts else [], False


def _of_teacher(run: RunFolder, student: EvalResult | None, teacher: EvalResult | None) -> str:
    """What a student does in comparison to its teacher; empty if that is not known."""
    parts = []
    if student is not None and teacher is not None and teacher.main_accuracy:
        share = 100 * student.main_accuracy / teacher.main_accuracy
        gain, images = _gain(student, teacher)
        if share <= 100:
            parts = [f"keeps {share:.0f} % of its teacher's accuracy"]
        elif gain is None:
            parts = [f"is as good as its teacher, so far as {student.n_images:,} images show"]
        else:
            parts = [f"is {_apart(gain, images)} its teacher"]
    summary = run.read_provenance().summary
    costs = [
        *_compared(summary.gmacs, summary.teacher_gmacs, "operations"),
        *_compared(summary.parameters, summary.teacher_parameters, "weights"),
    ]
    if costs:
        than = "" if parts else f" {'as' if 'as many' in costs[-1] else 'than'} its teacher"
        joint = " but " if "fewer" in costs[0] and "more" in costs[-1] else " and "
        parts.append(f"needs {joint.join(costs)}{than}")
    return ", and ".join(parts)


def _compared(own: float | None, teachers: float | None, of: str) -> list[str]:
    """How many operations or weights a student needs, in comparison to its teacher."""
    if not own or not teachers:
        return []
    ratio = teachers / own
    times, word = (ratio, "fewer") if ratio >= 1 else (1 / ratio, "more")
    return [
        f"{times:.{0 if times >= 10 else 1}f}x {word} {of}" if times >= 1.05 else f"as many {of}"
    ]


def _of_unlabeled(
    run: RunFolder, student: EvalResult | None, alone: EvalResult | None
) -> list[str]:
    """What the unlabeled images brought, against the same network without them, if it is known."""
    if student is None or alone is None:
        return []
    gain, images = _gain(student, alone)
    brought = f"brought nothing that {student.n_images:,} test images can show"
    if gain is not None:
        brought = f"{'brought' if gain > 0 else 'cost'} {abs(gain):.1f} points{images}"
    sentences = [
        f"The unlabeled images {brought}: the same network, trained on the labels alone, is right"
        f" on {alone.all:.1f} %."
    ]
    if gain is None and student.all < _GOOD_PERCENT:
        command = f"kdedge predict {shlex.quote(str(run.path))} IMAGES --uncertain 20"
        sentences.append(f"More labels would help. After the export, which to label: {command}")
    return sentences


def _gain(student: EvalResult, other: EvalResult) -> tuple[float | None, str]:
    """By how many points a student is better than another model on the same images.

    Where one has fewer than six right answers more, McNemar's test at 5 % never calls it better.

    Returns:
        None if they are as good as each other, so far as the images tell; and the number of images
        in brackets where they are few.
    """
    gain = student.main_accuracy - other.main_accuracy
    if student.harmonic_mean is not None or student.n_images >= _FEW_TEST_IMAGES:
        return gain or None, ""
    n = round(abs(gain) * student.n_images / 100)
    return (None if n < _SIGNIFICANT_ANSWERS else gain), f" ({images_text(n)})"


def _apart(points: float, images: str = "") -> str:
    return f"{abs(points):.1f} points{images} {'above' if points >= 0 else 'below'}"


def _interval(n_right: float, n_images: int) -> str:
    """`accuracy_interval` in words; empty with many images."""
    low, high = accuracy_interval(n_right, n_images)
    return "" if n_images >= _FEW_TEST_IMAGES else f"95 % interval: {low:.0f} to {high:.0f} %"


def accuracy_interval(n_right: float, n_images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent (Wilson, 1927)."""
    z2 = 1.96**2
    middle = n_right + z2 / 2
    half = math.sqrt(z2 * (n_right * (n_images - n_right) / n_images + z2 / 4))
    low, high = (100 * max(0.0, end) / (n_images + z2) for end in (middle - half, middle + half))
    return low, high


def _files(artifact: Artifact, shipped: FileToShip | None) -> list[str]:
    """Size, gate, agreement, time of the file to ship; which files missed their gates."""
    parts = []
    if shipped is not None:
        file = shipped.file
        time = shipped.time
        gate = "passed its gate" if file.gate == "passed" else "was not compared on this machine"
        facts = [f"{figure(file.n_bytes, 1e6)} MB"]
        if file.parity is not None:
            images = f"{file.parity.n_images:,} images"
            agreement = f"{file.parity.agreement_percent:.1f} % of {images}"
            facts.append(f"it agrees with the student on {agreement}")
        if time is not None and time.doubt is None:
            facts.append(f"a call takes {figure(time.p50_ms)} ms")
        parts.append(f"{file.name} {gate}: {', '.join(facts)}.")
    missed = [
        f"{file.name} ({_failed_figure(file.parity, file.precision, artifact.gates)})"
        for file in artifact.files
        if file.gate == "missed" and file.parity is not None
    ]
    if missed:
        gates = "its gate, and is" if len(missed) == 1 else "their gates, and are"
        parts.append(
            f"{' and '.join(missed)} missed {gates} used only where --precision asks for it."
        )
    return parts


def _failed_figure(parity: ParityResult, precision: Precision, gates: Mapping[str, Any]) -> str:
    """The figure for which a file missed its gate."""
    drop = parity.accuracy_drop
    without_drop = replace(parity, accuracy_drop=None)
    if drop is not None and failed_gates(parity, precision, gates) != failed_gates(
        without_drop, precision, gates
    ):
        return f"{drop:.1f} points less accurate"
    return f"{parity.agreement_percent:.1f} %"


def newest_speed(run: RunFolder) -> Path | None:
    """The file of a run's newest speed measurement."""
    return highest_number((run.path / "bench").glob("*.json"))
