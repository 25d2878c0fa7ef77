"""What an evaluation knows beyond its accuracies: who is taken for whom, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from kdedge._record import Record

_REMEDY = "`kdedge eval RUN` writes a new one."


@dataclass(frozen=True)
class CalibrationBin:
    """Images of similar confidence; only bins with an image are kept.

    Attributes:
        n_images: at least 1.
        confidence_percent: mean of the highest softmax value over all C names.
        accuracy_percent: share of the images whose top-1 class is right.
    """

    n_images: int
    confidence_percent: float
    accuracy_percent: float

    @classmethod
    def from_record(cls, record: Record) -> CalibrationBin:
        """Reads one entry of `bins`.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))
        return cls(
            n_images=record.count("n_images"),
            confidence_percent=record.number("confidence_percent"),
            accuracy_percent=record.number("accuracy_percent"),
        )


@dataclass(frozen=True)
class EvalDetails:
    """Confusions and calibration of one model on one test set, over all C names.

    Attributes:
        class_names: in class-list order.
        n_images: test images in all.
        confusion: (class, predicted class, images) as positions in `class_names`, ascending; pairs
            without an image are left out.
        bins: those of the calibration error, by confidence.
    """

    class_names: tuple[str, ...]
    n_images: int
    confusion: tuple[tuple[int, int, int], ...]
    bins: tuple[CalibrationBin, ...]

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

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values that JSON holds without loss."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object, where: str) -> EvalDetails:
        """Reads what `to_dict` gave, perhaps after a way through JSON.

        Args:
            value: the object.
            where: what messages begin with, such as the file.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record = Record(value, where, remedy=_REMEDY)
        record.check_keys(*(entry.name for entry in fields(cls)))
        names = record.sequence("class_names")
        if not names or not all(isinstance(name, str) for name in names):
            raise record.error("class_names", names, "a list of names")
        n_images = record.count("n_images")
        bins = tuple(map(CalibrationBin.from_record, record.records("bins")))
        if sum(found.n_images for found in bins) != n_images:
            raise record.error("bins", record.values["bins"], f"bins of {n_images} images in all")
        confusion = record.sequence("confusion")
        if not _is_confusion(confusion, n_classes=len(names), n_images=n_images):
            expected = f"[class, class, images] of {n_images} images in all, {len(names)} classes"
            raise record.error("confusion", confusion, expected)
        return cls(tuple(names), n_images, tuple((a, b, n) for a, b, n in confusion), bins)


def _is_confusion(entries: Sequence[Any], *, n_classes: int, n_images: int) -> bool:
    total = 0
    for entry in entries:
        if not isinstance(entry, list | tuple) or [type(x) for x in entry] != [int, int, int]:
            return False
        label, predicted, n = entry
        if not (0 <= label < n_classes and 0 <= predicted < n_classes and n > 0):
            return False
        total += n
    return total == n_images
