"""Confusions and calibration of an evaluation, beyond its accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kdedge.records import OPTIONAL, Bounds, Check, Count, Percent, PositiveCount, Record
from kdedge.results import SampleImage

SampleKind = Literal["right", "wrong", "most unsure"]


@dataclass(frozen=True)
class CalibrationBin(Record):
    """Images of similar confidence; bins without an image are left out.

    Attributes:
        n_images: at least 1.
        confidence_percent: mean of the highest softmax value over all C names.
        accuracy_percent: share of the images whose top-1 class is right.
    """

    n_images: PositiveCount
    confidence_percent: Percent
    accuracy_percent: Percent


def _check_confusion(entries: tuple[tuple[int, int, int], ...], before: dict[str, Any]) -> None:
    n_classes, n_images = len(before.get("class_names", ())), before.get("n_images")
    if any(max(entry[:2]) >= n_classes for entry in entries):
        raise ValueError(f"positions below {n_classes}, the number of class_names")
    if sum(entry[2] for entry in entries) != n_images:
        raise ValueError(f"[class, class, images] of {n_images} images in all, as n_images is")


def _check_bins(bins: tuple[CalibrationBin, ...], before: dict[str, Any]) -> None:
    n_images = before.get("n_images")
    if sum(found.n_images for found in bins) != n_images:
        raise ValueError(f"bins of {n_images} images in all, as n_images is")


def _check_right(marks: str | None, before: dict[str, Any]) -> None:
    n_images = before.get("n_images")
    if marks is not None and (set(marks) - {"0", "1"} or len(marks) != n_images):
        raise ValueError(f"0 or 1 for each of {n_images} images, as n_images is")


@dataclass(frozen=True)
class EvalDetails(Record):
    """Confusions and calibration of one model on one test set, over all C names.

    Attributes:
        class_names: in class-list order.
        n_images: test images in all.
        confusion: (class, predicted class, images) as positions in `class_names`, ascending; pairs
            without an image are left out.
        bins: those of the calibration error, by confidence.
        right: for each image, in the test set's order, 1 if its top-1 class is right and 0 if
            it is not; None in older records.
        samples: a few images by kind: right ones, wrong ones with the highest softmax, and those
            with the lowest softmax; None in older records, and for models that are only compared
            with.
    """

    class_names: Annotated[tuple[str, ...], Bounds(min_length=1)]
    n_images: PositiveCount
    confusion: Annotated[tuple[tuple[Count, Count, PositiveCount], ...], Check(_check_confusion)]
    bins: Annotated[tuple[CalibrationBin, ...], Check(_check_bins)]
    right: Annotated[str | None, OPTIONAL, Check(_check_right)] = None
    samples: Annotated[dict[SampleKind, tuple[SampleImage, ...]] | None, OPTIONAL] = None

    @property
    def accuracy_percent(self) -> float:
        """Top-1 accuracy over all names."""
        n_right = sum(n for label, predicted, n in self.confusion if label == predicted)
        return 100 * n_right / self.n_images

    @property
    def ece_percent(self) -> float:
        """Expected calibration error, L1, as `EvalResult.ece_percent` up to float32's rounding."""
        return sum(
            found.n_images / self.n_images * abs(found.accuracy_percent - found.confidence_percent)
            for found in self.bins
        )
