"""One line about a student: is it worth using, operations saved, latency, cost of compression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from kdedge.errors import DataError, SetupError
from kdedge.files import highest_number
from kdedge.results import EvalDetails, EvalResult, UnlabeledResult, are_same_images
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Summary
from kdedge.runs.results import read_details, read_evaluation, read_unlabeled
from kdedge.runtime.artifact import FILE_NAME, Artifact, load_artifact
from kdedge.speed_results import SpeedResult, SpeedRow, read_speed

_T = TypeVar("_T")


def headline_of(
    run: RunFolder,
    results: Mapping[str, EvalResult] | None = None,
    unlabeled: UnlabeledResult | None = None,
) -> str | None:
    """Returns the headline of a run; None if its records have nothing to compare.

    Args:
        run: the run; damaged records are left out.
        results: accuracies by model; default: those of the run's record.
        unlabeled: measurements without labels; default: those of the run's record.
    """
    if run.kind != "student":
        return None
    if results is None:
        results = _if_whole(lambda: read_evaluation(run)) or {}
    unlabeled = unlabeled or _if_whole(lambda: read_unlabeled(run))
    file = newest_artifact(run)
    artifact = None if file is None else _if_whole(lambda: load_artifact(file))
    summary = run.read_provenance().summary
    details = (_if_whole(lambda: read_details(run)) or {}).get(run.kind)
    return headline(results, details, unlabeled, summary, speed_of(run), artifact)


def speed_of(run: RunFolder) -> SpeedResult | None:
    """The newest speed measurement of a run; None without one, or if it is damaged."""
    file = newest_speed(run)
    return None if file is None else _if_whole(lambda: read_speed(file))


def _if_whole(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (DataError, SetupError):  # SetupError: written by a newer kdedge
        return None


def headline(
    results: Mapping[str, EvalResult],
    details: EvalDetails | None,
    unlabeled: UnlabeledResult | None,
    summary: Summary,
    speed: SpeedResult | None,
    artifact: Artifact | None,
) -> str | None:
    """Writes the headline of a student; None if there is nothing to compare.

    Args:
        results: accuracies by model.
        details: confusions of the student.
        unlabeled: measurements without labels.
        summary: has the operations.
        speed: speed measurement; the fastest exported file's is used.
        artifact: the export, with the comparison of its compressed files.
    """
    (kept, is_loss), less = _kept(results, unlabeled), _operations(summary)
    fastest = None if speed is None else fastest_file(speed)
    if kept is None and less is None:
        return None
    if kept is None:
        kept, less = f"needs {less}", None
    cost = None if artifact is None else _cost(artifact)
    only = None if artifact is None else artifact.provenance.get("predicts_only")
    only = only or (None if details is None else details.only_class)
    only = only and f"but predicts {only!r} for every image"
    if is_loss:
        return ", ".join(filter(None, [f"student {kept}", only]))
    parts = [kept, less, None if fastest is None else fastest[1], cost, only]
    return "student " + ", ".join(part for part in parts if part is not None)


def newest_speed(run: RunFolder) -> Path | None:
    """The file of a run's newest speed measurement."""
    return highest_number((run.path / "bench").glob("*.json"))


def newest_artifact(run: RunFolder) -> Path | None:
    """The record of a run's newest artifact."""
    newest = highest_number(run.exports)
    return None if newest is None else newest / FILE_NAME


def _cost(artifact: Artifact) -> str | None:
    """Agreement of the first INT8 file, else of the first in FP16, with the student.

    Files that are built later, such as by `export --cpu`, do not change it: they are compared on
    other images.
    """
    found = [
        ((file.precision != "int8", file.gate == "missed", number), file.precision, file.parity)
        for number, file in enumerate(artifact.files)
        if file.parity is not None and file.precision != "fp32"
    ]
    if not found:
        return None
    (_, is_missed, _), precision, parity = min(found, key=lambda one: one[0])
    return (
        f"{precision.upper()} agrees on {parity.agreement_percent:.1f} % of"
        f" {parity.n_images:,} images{', and misses its gate' if is_missed else ''}"
    )


def _kept(
    results: Mapping[str, EvalResult], unlabeled: UnlabeledResult | None
) -> tuple[str | None, bool]:
    """How accurate it is beside others on the same images, else the agreement with its teacher.

    Returns:
        The words, if there are any, and whether zero-shot CLIP is better in every respect.
    """
    own = results.get("student")
    said: list[str] = []
    if own is not None:
        if own.harmonic_mean is None:  # else no single figure is its accuracy
            said.append(f"right on {own.all:.1f} % of {own.n_images:,} test images")
        plain = _of_same_images(results, "zeroshot", own)
        points, mean = (0.0, 0.0) if plain is None else _gains(own, plain)
        if points < 0 and mean <= 0:
            return f"is {-points:.1f} points below zero-shot CLIP: do not use it", True
        if points < 0 or mean < 0:
            words = [
                f"{abs(x):.1f} points {'above' if x >= 0 else 'below'}" for x in (points, mean)
            ]
            said.append(f"{words[0]} zero-shot CLIP, and {words[1]} it in the mean over classes")
        else:
            said += _beside_teacher(own, _of_same_images(results, "teacher", own))
            said += [f"{points:.1f} points above zero-shot CLIP"] if points else []
        largest = own.largest_class_percent
        if largest is not None and own.all < largest and len(own.per_class) > 1:
            missing = largest - own.all
            said.append(f"{missing:.1f} points below always answering the most frequent class")
    if said:
        verb = "is " if said[0].startswith("right") or said[0][0].isdigit() else ""
        return verb + ", ".join(said), False
    if unlabeled is not None and unlabeled.agreement_percent is not None:
        return (
            f"agrees with the teacher on {unlabeled.agreement_percent:.0f} % of"
            f" {unlabeled.n_images:,} image{'' if unlabeled.n_images == 1 else 's'}"
        ), False
    return None, False


def _of_same_images(
    results: Mapping[str, EvalResult], name: str, own: EvalResult
) -> EvalResult | None:
    other = results.get(name)
    return other if other is not None and are_same_images(own, other) else None


def _points(own: EvalResult, other: EvalResult) -> float:
    """Difference of the harmonic means, or of the accuracies over all images."""
    if own.harmonic_mean is not None and other.harmonic_mean is not None:
        return own.harmonic_mean - other.harmonic_mean
    return own.all - other.all


def _gains(own: EvalResult, other: EvalResult) -> tuple[float, float]:
    """`_points`, and the difference in the mean over classes where all names compete alike."""
    points = _points(own, other)
    if own.harmonic_mean is not None:  # is of fewer names at a time
        return points, points
    return points, own.mean_over_classes - other.mean_over_classes


def _beside_teacher(own: EvalResult, teacher: EvalResult | None) -> list[str]:
    if teacher is None:
        return []
    points = _points(own, teacher)
    if points > 0:
        return [f"{points:.1f} points above its teacher"]
    theirs = teacher.all if teacher.harmonic_mean is None else teacher.harmonic_mean
    if not theirs:
        return []
    return [f"keeps {100 * (theirs + points) / theirs:.0f} % of the teacher's accuracy"]


def _operations(summary: Summary) -> str | None:
    if not summary.gmacs or not summary.teacher_gmacs:
        return None
    ratio = summary.teacher_gmacs / summary.gmacs
    times, word = (ratio, "fewer") if ratio >= 1 else (1 / ratio, "more")
    return f"{times:.{0 if times >= 10 else 1}f}x {word} operations than its teacher"


def fastest_file(speed: SpeedResult) -> tuple[str, str] | None:
    """The fastest exported file, at one image, that passed its gate, and its median time."""
    times = [(ms, row.model) for row in speed.rows if (ms := _ms(row)) is not None]
    if not times:
        return None
    ms, name = min(times)
    return name, f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def _ms(row: SpeedRow) -> float | None:
    found = row.at(1, "on device") or row.at(1, "copied")
    if found is None or found.doubt is not None or row.gate in (None, "missed"):
        return None
    return found.p50_ms
