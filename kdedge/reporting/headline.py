"""The words about a student: its accuracy, what it saves, its file, and whether to deploy it."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from typing import Literal, NamedTuple

from kdedge.artifacts.parity import failed_gates
from kdedge.artifacts.ship import FileToShip
from kdedge.messages import name_some
from kdedge.records.evaluation import EvalDetails, EvalResult, Gates, ParityResult
from kdedge.records.tables import digits, images_text
from kdedge.reporting.model_records import FEW_TEST_IMAGES, ModelRecords, accuracy_interval
from kdedge.runtime.artifact import Artifact, Precision

_FEW_OF_A_CLASS = 30  # with fewer, its interval is at least about 30 points wide
_GOOD_PERCENT = 95  # from here on, more labels are no longer the first advice
_OTHER = 1.05  # closer numbers of operations are called equal


class Verdict(NamedTuple):
    """Whether to deploy a student.

    Attributes:
        kind: what it comes to; `labels alone`: the same network, trained on the labels alone, is
            measurably better.
        text: a sentence with its reason.
    """

    kind: Literal["deploy", "labels alone", "do not deploy", "unknown"]
    text: str


def conclusion_of(records: ModelRecords) -> list[str]:
    """The headline of a run and the text of its verdict, if there are any."""
    verdict = verdict_of(records)
    return [*filter(None, [headline_of(records), verdict and verdict.text])]


def headline_of(records: ModelRecords) -> str | None:
    """Returns the headline of a run, one sentence a line; None if its records compare nothing."""
    if records.run.role != "student":
        return None
    file = records.judged_file
    model = "The student" if file is None else f"The file to ship, {file.name},"
    facts = _accuracy(records)
    sentences = [f"{model} {', '.join(facts)}."] if facts else []
    if not records.is_loss:
        of_teacher = _of_teacher(records)
        sentences += [f"{'It' if facts else model} {of_teacher}."] if of_teacher else []
        sentences += _of_unlabeled(records)
    if not sentences:
        return None
    if records.only_class is not None:
        sentences.append(f"But it predicts {records.only_class!r} for every image.")
    if records.artifact is not None and not records.is_loss:
        sentences += _files(records.artifact, records.ship, records.own)
    return "\n".join(sentences)


def verdict_of(records: ModelRecords) -> Verdict | None:
    """Returns whether to deploy a student: on condition of its weakest class's accuracy, at best.

    None where the headline says it already, and with the split base-to-novel, whose classes
    belong to a benchmark.
    """
    run, judged, details = records.run, records.judged, records.own_details
    if run.role != "student":
        return None
    if judged is None:
        if records.unlabeled is None:
            return None
        return Verdict(
            "unknown",
            "Whether to deploy it is not known: put labeled images into a folder for each class,"
            f" and run kdedge eval {shlex.quote(str(run.path))} --set data.test.folder=FOLDER",
        )
    if details is None or judged.harmonic_mean is not None or records.is_loss:
        return None
    if len(details.images_per_class) == 1:
        return Verdict(
            "unknown",
            "Whether to deploy it is not known: all test images are of one class,"
            f" {next(iter(details.images_per_class))}. Add images of the others to data.test.",
        )
    if details.only_class is not None:
        reason = "it predicts one class for every image"
        return Verdict("do not deploy", f"Do not deploy it: {reason}.")
    if judged.all < (judged.largest_class_percent or 0):
        reason = "always predicting the most frequent class is right more often"
        return Verdict("do not deploy", f"Do not deploy it: {reason}.")
    alone = records.gain_over("labels_alone")
    if alone is not None and alone.points <= -1 and alone.is_shown:
        return Verdict(
            "labels alone",
            "Rather deploy the same network trained on the labels alone:"
            f" {records.comparable['labels_alone'].all:.1f} % right. Train it with kdedge train"
            f" {shlex.quote(str(run.recipe))} --method ridge, and export that run.",
        )
    return Verdict("deploy", _condition(records, judged, details) + _doubts(records, details))


def advises_against(records: ModelRecords) -> bool:
    """Whether a student's headline or verdict says not to deploy it."""
    verdict = verdict_of(records)
    return records.is_loss or (verdict is not None and verdict.kind == "do not deploy")


def _condition(records: ModelRecords, judged: EvalResult, details: EvalDetails) -> str:
    """The accuracy that has to be enough: of all images, and of the weakest class."""
    weakest = records.weakest_class
    assert weakest is not None  # there are predictions
    name, n_right, n = weakest
    if n == n_right:
        low = math.floor(10 * accuracy_interval(details.n_images, details.n_images)[0]) / 10
        return (
            f"Deploy it if {low:.1f} % right is enough: {images_text(details.n_images)}, all of"
            " them right, cannot show more (95 % interval)."
        )
    if n_right * len(details.images_per_class) < n:
        return (
            f"Deploy it only where {name} does not matter: {n_right:,} of"
            f" {images_text(n)} of it are right, {judged.all:.1f} % of all."
        )
    facts = "; ".join(filter(None, [f"{n_right:,} of {images_text(n)}", _interval(n_right, n)]))
    return (
        f"Deploy it if {judged.all:.1f} % right is enough, and {100 * n_right / n:.0f} % of its"
        f" weakest class, {name} ({facts})."
        f"{' More test images would tell more.' if n < _FEW_OF_A_CLASS else ''}"
    )


def _doubts(records: ModelRecords, details: EvalDetails) -> str:
    """Which classes have no test images, or none that taught the student."""
    tested = details.images_per_class
    untested = [name for name in details.class_names if name not in tested]
    doubts = f" No test image shows {name_some(untested)}." if untested else ""
    if unseen := records.run.read_provenance().summary.closed_form.get("unseen_classes"):
        doubts += f" The teacher predicts {name_some(unseen)} for no unlabeled image: add images."
    return doubts


def _accuracy(records: ModelRecords) -> list[str]:
    """The model's accuracy, compared with zero-shot CLIP, the largest class and the student."""
    student, judged, unlabeled = records.own, records.judged, records.unlabeled
    if student is None or judged is None:
        if unlabeled is None or unlabeled.agreement_percent is None:
            return []
        images = images_text(unlabeled.n_images)
        return [f"agrees with its teacher on {unlabeled.agreement_percent:.0f} % of {images}"]
    points, mean = records.above_zero_shot
    parts = []
    if records.is_loss:
        parts.append(f"{-points:.1f} points below zero-shot CLIP: do not use it")
    else:
        if judged.harmonic_mean is None:  # else no single figure is its accuracy
            interval = _interval(judged.all * judged.n_images / 100, judged.n_images)
            right = f"right on {judged.all:.1f} % of {judged.n_images:,} test images"
            parts.append(f"{right} ({interval})" if interval else right)
        if points < 0 or mean < 0:
            first, second = _apart(points), _apart(mean)
            parts.append(f"{first} zero-shot CLIP, and {second} it in the mean over classes")
        elif points:
            parts.append(f"{_apart(points)} zero-shot CLIP")
        largest = judged.largest_class_percent
        if largest is not None and judged.all < largest and len(judged.per_class) > 1:
            missing = largest - judged.all
            parts.append(f"{missing:.1f} points below always predicting the most frequent class")
    if judged != student:
        lost = judged.all - student.all
        compared = f"{_apart(lost)} the student" if lost else "as often as the student"
        parts.append(f"{compared} before export")
    return [f"is {parts[0]}", *parts[1:]] if parts else []


def _of_teacher(records: ModelRecords) -> str:
    """What a student does in comparison to its teacher; empty if that is not known."""
    parts = []
    gain = records.gain_over("teacher")
    teacher, student = records.comparable.get("teacher"), records.judged
    if gain is not None and student is not None and teacher is not None and teacher.main_accuracy:
        if gain.points <= 0:
            share = 100 * student.main_accuracy / teacher.main_accuracy
            parts = [f"keeps {share:.0f} % of its teacher's accuracy"]
        elif gain.is_shown:
            parts = [f"is {_apart(gain.points, gain.n_images)} its teacher"]
        else:
            parts = [f"is as good as its teacher, as far as {student.n_images:,} images show"]
    if ratios := [*records.savings.values()]:
        needs = [_needed(ratio, of) for of, ratio in records.savings.items()]
        is_mixed = ratios[0] >= _OTHER and ratios[-1] <= 1 / _OTHER
        joint = " but " if is_mixed else " and "
        than = "as" if 1 / _OTHER < ratios[-1] < _OTHER else "than"
        parts.append(f"needs {joint.join(needs)}{'' if parts else f' {than} its teacher'}")
    return ", and ".join(parts)


def _needed(ratio: float, of: str) -> str:
    """How many operations or weights a student needs, in comparison to its teacher."""
    if 1 / _OTHER < ratio < _OTHER:
        return f"as many {of}"
    times, word = (ratio, "fewer") if ratio >= 1 else (1 / ratio, "more")
    return f"{times:.{0 if times >= 10 else 1}f}x {word} {of}"


def _of_unlabeled(records: ModelRecords) -> list[str]:
    """What the unlabeled images brought, against the same network without them, if it is known."""
    student, gain = records.own, records.gain_over("labels_alone")
    if student is None or gain is None:
        return []
    brought = f"brought nothing that {student.n_images:,} test images can show"
    if gain.is_shown:
        images = "" if gain.n_images is None else f" ({images_text(gain.n_images)})"
        word = "brought" if gain.points > 0 else "cost"
        brought = f"{word} {abs(gain.points):.1f} points{images}"
    sentences = [
        f"The unlabeled images {brought}: the same network, trained on the labels alone, is right"
        f" on {records.comparable['labels_alone'].all:.1f} %."
    ]
    if not gain.is_shown and student.all < _GOOD_PERCENT:
        sentences.append(
            "More labels would help. After the export, this finds images to label:"
            f" kdedge predict {shlex.quote(str(records.run.path))} IMAGES --uncertain 20"
        )
    return sentences


def _apart(points: float, n_images: int | None = None) -> str:
    images = "" if n_images is None else f" ({images_text(n_images)})"
    return f"{abs(points):.1f} points{images} {'above' if points >= 0 else 'below'}"


def _interval(n_right: float, n_images: int) -> str:
    """`accuracy_interval` in words; empty with many images."""
    low, high = accuracy_interval(n_right, n_images)
    return "" if n_images >= FEW_TEST_IMAGES else f"95 % interval: {low:.0f} to {high:.0f} %"


def _files(artifact: Artifact, shipped: FileToShip | None, own: EvalResult | None) -> list[str]:
    """Size, gate, agreement, time of the file to ship; which files missed their gates."""
    parts = []
    if shipped is not None:
        file = shipped.file
        time = shipped.time
        gate = "passed its gate" if file.gate == "passed" else "was not compared on this machine"
        facts = [f"{digits(file.n_bytes, 1e6)} MB"]
        if file.parity is not None:
            images = f"{file.parity.n_images:,} images"
            agreement = f"{file.parity.agreement_percent:.1f} % of {images}"
            facts.append(f"it agrees with the student on {agreement}")
        if time is not None and time.doubt is None:
            facts.append(f"a call takes {digits(time.p50_ms)} ms")
        parts.append(f"{file.name} {gate}: {', '.join(facts)}.")
    missed = [
        f"{file.name} ({_failed_figure(file.parity, file.precision, artifact.gates)})"
        for file in artifact.files
        if file.gate == "missed" and file.parity is not None
    ]
    if missed:
        gates = "its gate, and is" if len(missed) == 1 else "their gates, and are"
        parts.append(
            f"{' and '.join(missed)} missed {gates} used only if you ask for that precision."
        )
    if own is not None and {*own.per_class} != {*artifact.class_names}:
        n_classes = len(artifact.class_names)
        parts.append(f"The accuracy is not that of the {n_classes} exported classes.")
    if artifact.none_of_these is not None:
        share = 100 - artifact.none_of_these.share_percent
        gets = f"which about {share:g} % of usual images get"
        parts.append(f'The accuracy does not count "none", {gets}.')
    return parts


def _failed_figure(parity: ParityResult, precision: Precision, gates: Gates) -> str:
    """The figure for which a file missed its gate."""
    drop = parity.accuracy_drop
    without_drop = replace(parity, accuracy_drop=None)
    if drop is not None and failed_gates(parity, precision, gates) != failed_gates(
        without_drop, precision, gates
    ):
        return f"{drop:.1f} points less accurate"
    if parity.n_nonfinite:
        return f"NaN or infinity for {images_text(parity.n_nonfinite)}"
    return f"{parity.agreement_percent:.2f} %"
