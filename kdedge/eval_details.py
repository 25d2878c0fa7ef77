"""Confusions and calibration of an evaluation, beyond its accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from kdedge.records import Count, Percent, PositiveCount, Record


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


@dataclass(frozen=True)
class EvalDetails(Record):
    """Confusions and calibration of one model on one test set, over all C names.

    Attributes:
        class_names: in class-list order.
        n_images: test images in all.
        confusion: (class, predicted class, images) as positions in `class_names`, ascending; pairs
            without an image are left out.
        bins: those of the calibration error, by confidence.
    """

    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    n_images: PositiveCount
    confusion: tuple[tuple[Count, Count, PositiveCount], ...]
    bins: tuple[CalibrationBin, ...]

    @field_validator("confusion")
    @classmethod
    def _check_confusion(
        cls, entries: tuple[tuple[int, int, int], ...], info: ValidationInfo
    ) -> tuple[tuple[int, int, int], ...]:
        n_classes = len(info.data.get("class_names", ()))
        n_images = info.data.get("n_images")
        if max((max(entry[:2]) for entry in entries), default=0) >= n_classes:
            raise ValueError(f"positions below {n_classes}, the number of class_names")
        if sum(entry[2] for entry in entries) != n_images:
            raise ValueError(f"[class, class, images] of {n_images} images in all, as n_images is")
        return entries

    @field_validator("bins")
    @classmethod
    def _check_bins(
        cls, bins: tuple[CalibrationBin, ...], info: ValidationInfo
    ) -> tuple[CalibrationBin, ...]:
        n_images = info.data.get("n_images")
        if sum(found.n_images for found in bins) != n_images:
            raise ValueError(f"bins of {n_images} images in all, as n_images is")
        return bins

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
