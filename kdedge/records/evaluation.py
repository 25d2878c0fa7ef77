"""Results of evaluation and comparison: records that commands write and tables read, without torch.

Accuracies are in percent (0-100). Nothing is rounded before it is stored; tables round what they
show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol, TypeVar

from pydantic import Field

from kdedge.records.record import Count, Fraction, Percent, Positive, PositiveCount, Record
from kdedge.records.tables import Table, Tabled, decimals

Role = Literal["teacher", "student", "baseline"]
SplitName = Literal["all", "base-to-novel"]
Selection = Literal["last", "validation", "test"]

_CHOSEN_ON_TEST = (
    "its epoch was chosen on the test images, as in the public code; do not compare it with others."
)


def harmonic_mean(base: float, novel: float) -> float:
    """Harmonic mean of base and novel accuracy, both in percent; 0 where either is 0.

    Source: the base-to-novel protocol of CoCoOp (arXiv:2203.05557), HM = 2BN / (B + N).
    """
    if base <= 0 or novel <= 0:
        return 0.0
    return 2 * base * novel / (base + novel)


class OnImages(Protocol):
    """A result that was measured on a set of images."""

    @property
    def n_images(self) -> int | None:
        """Number of images; None if not recorded."""

    @property
    def images_hash(self) -> str | None:
        """Equal for the same images, labels and class list; None if not recorded."""


_Measured = TypeVar("_Measured", bound=OnImages)


def are_same_images(first: OnImages, other: OnImages) -> bool:
    """Whether two results were measured on the same images."""
    return (first.n_images, first.images_hash) == (other.n_images, other.images_hash)


def on_same_images(
    results: Mapping[str, _Measured], result: OnImages | None
) -> dict[str, _Measured]:
    """The results, by model, with another result's images and split; empty for None."""
    if result is None:
        return {}
    split = getattr(result, "split", None)
    return {
        name: other
        for name, other in results.items()
        if are_same_images(other, result) and getattr(other, "split", None) == split
    }


def by_images(rows: Sequence[tuple[str, _Measured]]) -> list[list[tuple[str, _Measured]]]:
    """Groups labeled results by their images, in order of first appearance."""
    groups: list[list[tuple[str, _Measured]]] = []
    for row in rows:
        same = [group for group in groups if are_same_images(group[0][1], row[1])]
        if same:
            same[0].append(row)
        else:
            groups.append([row])
    return groups


@dataclass(frozen=True)
class EvalResult(Record, Tabled):
    """Accuracies of one model on one test set.

    Attributes:
        split: `all`, or `base-to-novel`: the first ceil(C / 2) classes against the others.
        selection: which weights were measured: of the last epoch, or of the epoch with the best
            accuracy on validation images, or on the test images themselves (`official: true`).
        n_images: test images in all.
        all: accuracy of all images against all C names.
        base: accuracy of the base classes' images against base names only; None if the split
            is `all` or no image is of a base class.
        novel: the same of the other classes.
        harmonic_mean: of base and novel; None if one of them is None.
        ece_percent: expected calibration error of the softmax over all C names, 15 bins, L1.
        per_class: accuracy of each class's images against all C names, in class-list order; None
            for a class without test images.
        images_hash: as in `OnImages`.
        largest_class_percent: share of the test images that are of their largest class: what
            always predicting that class would reach.
        temperature: what the logits are divided by in an export with `export.calibrate`; None if
            the recipe does not ask for it, or no temperature fits.
        calibrated_ece_percent: the calibration error with it.
    """

    split: SplitName
    selection: Selection
    n_images: Count
    all: Percent
    base: Percent | None
    novel: Percent | None
    harmonic_mean: Percent | None
    ece_percent: Percent
    per_class: dict[str, Percent | None] = field(default_factory=dict)
    images_hash: str | None = None
    largest_class_percent: Percent | None = None
    temperature: Positive | None = None
    calibrated_ece_percent: Percent | None = None

    @property
    def main_accuracy(self) -> float:
        """The harmonic mean; if there is none, the accuracy over all images."""
        return self.all if self.harmonic_mean is None else self.harmonic_mean

    @property
    def mean_over_classes(self) -> float:
        """Mean of `per_class`, in percent: each class counts the same, however many images."""
        known = [value for value in self.per_class.values() if value is not None]
        return sum(known) / len(known) if known else self.all

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about comparing this result, for the lines below a table."""
        return (_CHOSEN_ON_TEST,) if self.selection == "test" else ()

    @property
    def table(self) -> Table:
        """Accuracies in percent, as one row of cells."""
        return results_table([(f"{self.n_images:,}", self)], first="test images")


def results_table(rows: Sequence[tuple[str, EvalResult]], *, first: str = "model") -> Table:
    """The results of models by label, in percent, one a row; all results have the same split.

    Args:
        rows: labels and results.
        first: title of the first column.
    """
    if rows and rows[0][1].split == "base-to-novel":
        columns = {"base": "base", "novel": "novel", "HM": "harmonic_mean", "all": "all"}
    else:
        columns = {"accuracy": "all"}
    if any(abs(result.mean_over_classes - result.all) >= 0.005 for _, result in rows):
        columns["mean over classes"] = "mean_over_classes"
    columns["calibration error"] = "ece_percent"
    if any(result.calibrated_ece_percent is not None for _, result in rows):
        columns["calibrated"] = "calibrated_ece_percent"
    lines = []
    for label, result in rows:
        accuracies = [decimals(getattr(result, name)) for name in columns.values()]
        lines.append([label, *accuracies])
    return Table("", [first, *columns], lines)


@dataclass(frozen=True)
class SampleImage(Record):
    """An image and its predictions.

    Attributes:
        image: its key, as the image source names it.
        top: the model's classes with the highest softmax, and that softmax in percent.
        teacher: the teacher's class; None if there is no teacher.
        label: its own class; None if it has no label.
    """

    image: str
    top: Annotated[tuple[tuple[str, Percent], ...], Field(min_length=1)]
    teacher: str | None
    label: str | None = None


@dataclass(frozen=True)
class UnlabeledResult(Record, Tabled):
    """Measurements of a model on images without labels.

    Attributes:
        n_images: images that it was measured on, at least 1.
        images: describes them.
        images_hash: as in `OnImages`.
        agreement_percent: images with the teacher's top-1 class; None if there is no
            teacher.
        confidence_percent: mean over images of the highest softmax.
        teacher_confidence_percent: the teacher's.
        predicted: images by predicted class, of the classes that were predicted, in class-list
            order.
        teacher_predicted: the same of the teacher; empty without one.
        n_classes: length of the class list.
        samples: some of the images, first those where model and teacher differ.
    """

    n_images: PositiveCount
    images: str
    images_hash: str
    agreement_percent: Percent | None
    confidence_percent: Percent
    teacher_confidence_percent: Percent | None
    predicted: dict[str, PositiveCount]
    teacher_predicted: dict[str, PositiveCount]
    n_classes: PositiveCount
    samples: tuple[SampleImage, ...]

    @property
    def table(self) -> Table:
        """What was measured: a name and a value in each row."""
        rows = [["images", self.images]]
        teacher = ""
        if self.agreement_percent is not None:
            rows.append(["teacher agrees", f"{self.agreement_percent:.2f} %"])
            teacher = f", the teacher's {decimals(self.teacher_confidence_percent)} %"
        rows.append(["mean confidence", f"{self.confidence_percent:.2f} %{teacher}"])
        rows.append(["classes predicted", f"{len(self.predicted):,} of {self.n_classes:,}"])
        return Table("", [], rows, align="l")


def assumed_shares(prior: str | dict[str, float]) -> str:
    """The shares of the classes that a model in balance with a prior assumes, in words."""
    if isinstance(prior, dict):
        given = ", ".join(f"{name} {100 * share:g} %" for name, share in prior.items())
        return f"these shares of the classes: {given}"
    words = {
        "auto": "equal shares of the classes, as far as the unlabeled images allow",
        "uniform": "equal shares of the classes",
        "labels": "the shares of the labeled images",
    }
    return words[prior]


@dataclass(frozen=True)
class LogitAdjustment(Record):
    """Offsets that bring a model's predictions into balance.

    Attributes:
        prior: the recipe's: auto, uniform or labels, or the shares that it gives.
        strength: the part of the offsets that is subtracted.
        offsets: class -> offset, subtracted from its logit; with the strength.
        n_images: unlabeled images that they were found on.
        images: describes them.
    """

    prior: str | dict[str, float]
    strength: float
    offsets: dict[str, float]
    n_images: int
    images: str


@dataclass(frozen=True)
class Gates(Record):
    """What an exported file must reach against the float32 model, on real images.

    Attributes:
        agreement: precision -> lowest share of images with the same top-1 class, in percent.
        max_drop: largest drop of the top-1 accuracy, in percentage points.
    """

    agreement: dict[str, Percent]
    max_drop: Percent


@dataclass(frozen=True)
class WorstImage(Record):
    """An image on which an exported file differs most from the float32 model.

    Attributes:
        image: its key, as the image source names it.
        reference_class: top-1 class of the float32 model.
        predicted_class: top-1 class of the file; None if a logit is not finite.
        distance: between the two softmaxes, as in `ParityResult`; None if there are no scores.
    """

    image: str
    reference_class: str
    predicted_class: str | None
    distance: Fraction | None


@dataclass(frozen=True)
class TestSet(Record):
    """The whole test set that compared images were taken from."""

    __test__ = False  # pytest would take it for a class of tests

    n_images: PositiveCount
    images_hash: str


@dataclass(frozen=True)
class ParityResult(Record):
    """Comparison of an exported file with the float32 model on the same images.

    Attributes:
        n_images: images compared, at least 1.
        n_labeled: images whose class is known.
        n_nonfinite: images for which the file gave NaN or an infinite logit, as an overflow in
            fp16 does. They count as disagreeing, as wrong, and with the distance 1.
        agreement_percent: images with the same top-1 class in both.
        mean_softmax_distance: mean over images of the total variation distance of the two
            softmaxes, half the sum of absolute differences, 0-1; None if the logits only rank
            (head argmax).
        max_softmax_distance: the largest of them.
        accuracy_percent: of the file on the labeled images; None if there are none.
        reference_accuracy_percent: of the float32 model on them.
        accuracy_drop: reference minus file, in points; below 0 if the file is more accurate.
        worst: at most ten images: those that disagree first, then by distance.
        images: describes the images.
        runtime: names what ran the file, such as "onnxruntime 1.24.4 CPU".
        images_hash: as in `OnImages`; None for images of a smoke set.
        test_set: the whole test set that they were taken from, evenly spaced; None if they were
            not.
        ece_percent: expected calibration error of the file on the labeled images, as in
            `EvalResult`; None if no temperature was fitted.
        ece_percent_before: what it would be without the temperature.
        per_class: accuracy of the file on each class's images, as in `EvalResult`; empty if no
            image has a label.
    """

    n_images: PositiveCount
    n_labeled: Count
    n_nonfinite: Count
    agreement_percent: Percent
    mean_softmax_distance: Fraction | None
    max_softmax_distance: Fraction | None
    accuracy_percent: Percent | None
    reference_accuracy_percent: Percent | None
    accuracy_drop: Annotated[float, Field(ge=-100, le=100)] | None
    worst: tuple[WorstImage, ...]
    images: str
    runtime: str
    images_hash: str | None = None
    test_set: TestSet | None = None
    ece_percent: Percent | None = None
    ece_percent_before: Percent | None = None
    per_class: dict[str, Percent | None] = field(default_factory=dict)


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


def ece_percent(bins: Sequence[CalibrationBin], n_images: int) -> float:
    """Expected calibration error of bins of confidence, L1, in percent."""
    gaps = (
        entry.n_images * abs(entry.accuracy_percent - entry.confidence_percent) for entry in bins
    )
    return sum(gaps) / n_images


class OnlyRight(NamedTuple):
    """Numbers of test images that only one of two models gets right.

    Attributes:
        own: only this model.
        other: only the other one.
    """

    own: int
    other: int


@dataclass(frozen=True)
class EvalDetails(Record):
    """Confusions and calibration of one model on one test set, over all C names.

    Attributes:
        class_names: in class-list order.
        n_images: test images in all.
        confusion: (class, predicted class, images) as positions in `class_names`, ascending; pairs
            without an image are left out.
        bins: of the calibration error, by confidence.
        samples: a few images by kind: right ones, wrong ones with the highest softmax, and those
            with the lowest softmax; None for models that are only compared with.
        right: a hexadecimal number with one bit per test image, the first one's highest: whether
            the image is right, with base and novel images among names of their own half; None in
            older records.
    """

    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    n_images: PositiveCount
    confusion: tuple[tuple[Count, Count, PositiveCount], ...]
    bins: tuple[CalibrationBin, ...]
    samples: dict[SampleKind, tuple[SampleImage, ...]] | None = None
    right: Annotated[str, Field(pattern="^[0-9a-f]+$")] | None = None

    def only_right(self, other: EvalDetails) -> OnlyRight | None:
        """Test images that only one of two models gets right; None if unknown."""
        if self.right is None or other.right is None:
            return None
        own = int(self.right, 16)
        others = int(other.right, 16)
        return OnlyRight((own & ~others).bit_count(), (others & ~own).bit_count())

    @property
    def images_per_class(self) -> Counter[str]:
        """Test images of each class that has any, in class-list order."""
        counts = Counter[str]()
        for label, _, n_images in self.confusion:
            counts[self.class_names[label]] += n_images
        return counts

    @property
    def accuracy_percent(self) -> float:
        """Top-1 accuracy over all names."""
        n_right = sum(n for label, predicted, n in self.confusion if label == predicted)
        return 100 * n_right / self.n_images

    @property
    def only_class(self) -> str | None:
        """The class that is predicted for every image, although not all are of one class."""
        labels = {label for label, _, _ in self.confusion}
        classes = {predicted for _, predicted, _ in self.confusion}
        is_told = len(labels) > 1 and len(classes) == 1
        return self.class_names[classes.pop()] if is_told else None

    @property
    def ece_percent(self) -> float:
        """Expected calibration error, L1, as `EvalResult.ece_percent`."""
        return ece_percent(self.bins, self.n_images)
