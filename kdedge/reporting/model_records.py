"""The records of a run that its headline and its verdict rest on, and what they say, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kdedge.artifacts.ship import FileToShip, file_to_ship
from kdedge.files import highest_number
from kdedge.inference.comparison import ALPHA, mcnemar_p
from kdedge.records.evaluation import (
    EvalDetails,
    EvalResult,
    UnlabeledResult,
    are_same_images,
    on_same_images,
)
from kdedge.records.record import if_readable
from kdedge.records.speed import SpeedResult, read_speed
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_details, read_evaluation, read_unlabeled
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact

FEW_TEST_IMAGES = 1000  # with fewer, chance moves an accuracy by more than about three points


class Gain(NamedTuple):
    """By how many points a student is better than another model on the same images.

    Attributes:
        points: difference of their `main_accuracy`.
        n_images: the images that it amounts to; None where they are many.
        is_shown: whether the test images show a difference, by McNemar's test at 5 %.
    """

    points: float
    n_images: int | None
    is_shown: bool


class WeakestClass(NamedTuple):
    """The class with the lowest accuracy."""

    name: str
    n_right: int
    n_images: int


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

    @property
    def own(self) -> EvalResult | None:
        """The accuracy of the run's own model."""
        return self.results.get(self.run.role)

    @property
    def own_details(self) -> EvalDetails | None:
        """The confusions of the run's own model."""
        return self.details.get(self.run.role)

    @property
    def comparable(self) -> Mapping[str, EvalResult]:
        """The results on the same images as the result of the run's own model."""
        return on_same_images(self.results, self.own)

    @cached_property
    def ship(self) -> FileToShip | None:
        """The file to ship."""
        return None if self.artifact is None else file_to_ship(self.artifact, self.speed)

    @cached_property
    def judged_file(self) -> ModelFile | None:
        """The file to ship, if the verdict is about it; else it is about the model before export.

        The file was compared on the model's own test images and differs on some of them.
        """
        own, parity = self.own, None if self.ship is None else self.ship.file.parity
        is_compared = (
            own is not None
            and own.harmonic_mean is None
            and parity is not None
            and bool(parity.per_class)
            and parity.agreement_percent < 100
            and are_same_images(own, parity)
        )
        return self.ship.file if is_compared and self.ship is not None else None

    @cached_property
    def judged(self) -> EvalResult | None:
        """The accuracy that the verdict is about; the calibration of a file is not known."""
        own = self.own
        if own is None or self.judged_file is None or (parity := self.judged_file.parity) is None:
            return own
        return replace(own, all=parity.accuracy_percent or 0.0, per_class=parity.per_class)

    @property
    def above_zero_shot(self) -> tuple[float, float]:
        """Points above zero-shot CLIP, in `main_accuracy` and in the mean over classes.

        They are equal for the harmonic mean, and 0 where zero-shot CLIP was not measured.
        """
        judged, zero_shot = self.judged, self.comparable.get("zeroshot")
        if judged is None or zero_shot is None:
            return 0.0, 0.0
        points = judged.main_accuracy - zero_shot.main_accuracy
        if judged.harmonic_mean is not None:
            return points, points
        return points, judged.mean_over_classes - zero_shot.mean_over_classes

    @property
    def is_loss(self) -> bool:
        """Whether zero-shot CLIP is better in every respect."""
        points, mean = self.above_zero_shot
        return points < 0 and mean <= 0

    def gain_over(self, other: str) -> Gain | None:
        """How much better the student is than another model; None if that is not known.

        The judged model is compared with the teacher, the student before export with the others.
        """
        result = self.comparable.get(other)
        student = self.judged if other == "teacher" else self.own
        if student is None or result is None:
            return None
        points = student.main_accuracy - result.main_accuracy
        own, others = self.own_details, self.details.get(other)
        only_right = own.only_right(others) if own and others else None
        is_shown = student.n_images >= FEW_TEST_IMAGES  # if that is all that is known
        if only_right is not None:
            is_shown = mcnemar_p(*only_right) < ALPHA
        if student.harmonic_mean is not None or student.n_images >= FEW_TEST_IMAGES:
            return Gain(points, None, is_shown)
        return Gain(points, round(abs(points) * student.n_images / 100), is_shown)

    @property
    def savings(self) -> dict[str, float]:
        """The teacher's operations and weights, each divided by the student's, if known."""
        summary = self.run.read_provenance().summary
        of = {
            "operations": (summary.gmacs, summary.teacher_gmacs),
            "weights": (summary.parameters, summary.teacher_parameters),
        }
        return {name: teachers / own for name, (own, teachers) in of.items() if own and teachers}

    @property
    def only_class(self) -> str | None:
        """The class that the model predicts for every image, if there is one."""
        if self.own_details is not None:
            return self.own_details.only_class
        return None if self.artifact is None else self.artifact.provenance.get("predicts_only")

    @property
    def weakest_class(self) -> WeakestClass | None:
        """The judged model's weakest class."""
        if self.judged is None or self.own_details is None:
            return None
        n_of = self.own_details.images_per_class
        shares = {name: (self.judged.per_class.get(name) or 0.0) / 100 for name in n_of}
        weakest = min(shares, key=shares.__getitem__)
        return WeakestClass(weakest, round(shares[weakest] * n_of[weakest]), n_of[weakest])


def model_records(run: RunFolder, read: Callable[..., Any] = if_readable) -> ModelRecords:
    """Reads these records of a run.

    Args:
        run: the run's folder.
        read: calls a reader with its arguments; returns None if the record is damaged.
    """
    exported, measured = run.newest_artifact, newest_speed(run)
    return ModelRecords(
        run,
        results=read(read_evaluation, run) or {},
        details=read(read_details, run) or {},
        unlabeled=read(read_unlabeled, run),
        artifact=None if exported is None else read(load_artifact, exported),
        speed=None if measured is None else read(read_speed, measured),
    )


def newest_speed(run: RunFolder) -> Path | None:
    """The file of a run's newest speed measurement."""
    return highest_number((run.path / "bench").glob("*.json"))


def accuracy_interval(n_right: float, n_images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent (Wilson, 1927)."""
    z2 = 1.96**2
    middle = n_right + z2 / 2
    half = math.sqrt(z2 * (n_right * (n_images - n_right) / n_images + z2 / 4))
    low, high = (100 * max(0.0, end) / (n_images + z2) for end in (middle - half, middle + half))
    return low, high
