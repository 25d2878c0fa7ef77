"""Evaluation and parity results: records that commands write and tables read, without torch.

Accuracies are in percent (0-100). Nothing is rounded before it is stored; tables round what they
show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from kdedge.records import (
    OPTIONAL,
    Bounds,
    Count,
    Fraction,
    Percent,
    PositiveCount,
    Record,
    at_most,
    null_as,
)

Split = Literal["all", "base-to-novel"]
Selection = Literal["last", "validation", "test"]

_CHOSEN_ON_TEST = (
    "its epoch was chosen on test images, as the public code does; not to be compared with others."
)
_OWN_SPLIT = (
    "its test images are of the set's own rule, as CoOp's split file was not there; not to be"
    " compared with published figures."
)


def harmonic_mean(base: float, novel: float) -> float:
    """Harmonic mean of base and novel accuracy, both in percent; 0 where either is 0.

    Source: the base-to-novel protocol of CoCoOp (arXiv:2203.05557), HM = 2BN / (B + N).
    """
    if base <= 0 or novel <= 0:
        return 0.0
    return 2 * base * novel / (base + novel)


@dataclass(frozen=True)
class EvalResult(Record):
    """Accuracies of one model on one test set.

    Attributes:
        split: `all`, or `base-to-novel`: the first ceil(C / 2) classes against the others.
        selection: which weights were measured: those of the last epoch, or those with the best
            accuracy on validation images, or on the test images themselves (`official: true`).
        n_images: test images in all.
        all: accuracy of all images against all C names.
        base: accuracy of the base classes' images against base names only; None where the split
            is `all` or no image is of a base class.
        novel: the same of the other classes.
        harmonic_mean: of base and novel; None where one of them is None.
        ece_percent: expected calibration error of the softmax over all C names, 15 bins, L1.
        per_class: accuracy of each class's images against all C names, in class-list order; None
            for a class without test images.
        is_own_split: whether a benchmark set's own rule made the test part, as the published split
            was not there.
    """

    split: Split
    selection: Selection
    n_images: Count
    all: Percent
    base: Percent | None
    novel: Percent | None
    harmonic_mean: Percent | None
    ece_percent: Percent
    per_class: dict[str, Percent | None] = field(default_factory=dict)
    is_own_split: Annotated[bool, OPTIONAL] = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings about comparing this result, for the lines below a table."""
        found = {_CHOSEN_ON_TEST: self.selection == "test", _OWN_SPLIT: self.is_own_split}
        return tuple(text for text, is_so in found.items() if is_so)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, with `is_own_split` only where it is true."""
        values = super().to_dict()
        if not self.is_own_split:
            del values["is_own_split"]
        return values


@dataclass(frozen=True)
class WorstImage(Record):
    """An image on which an exported file differs most from the float32 model.

    Attributes:
        image: its key, as the image source names it.
        reference_class: top-1 class of the float32 model.
        predicted_class: top-1 class of the file; None where a logit is not finite.
        distance: between the two softmaxes, as in `ParityResult`; None where there are no scores.
    """

    image: str
    reference_class: str
    predicted_class: str | None
    distance: Fraction | None


@dataclass(frozen=True)
class ParityResult(Record):
    """Comparison of an exported file with the float32 student on the same images.

    Attributes:
        n_images: images compared, at least 1.
        n_labeled: images whose class is known.
        n_nonfinite: images for which the file gave NaN or an infinite logit, as an overflow in
            fp16 does. They count as disagreeing, as wrong, and with the distance 1.
        agreement_percent: images with the same top-1 class in both.
        mean_softmax_distance: mean over images of the total variation distance of the two
            softmaxes, half the sum of absolute differences, 0-1; None where the logits only rank
            (head argmax).
        max_softmax_distance: the largest of them.
        accuracy_percent: of the file on the labeled images; None where there are none.
        reference_accuracy_percent: of the float32 student on them.
        accuracy_drop: reference minus file, in points; below 0 where the file is more accurate.
        worst: at most ten images: those that disagree first, then by distance.
        images: describes the images.
        runtime: names what ran the file, such as "onnxruntime 1.24.4 CPU".
    """

    n_images: PositiveCount
    n_labeled: Annotated[Count, at_most("n_images")]
    n_nonfinite: Annotated[Count, at_most("n_images")]
    agreement_percent: Percent
    mean_softmax_distance: Fraction | None
    max_softmax_distance: Annotated[Fraction | None, null_as("mean_softmax_distance")]
    accuracy_percent: Annotated[Percent | None, null_as("n_labeled")]
    reference_accuracy_percent: Annotated[Percent | None, null_as("n_labeled")]
    accuracy_drop: Annotated[Annotated[float, Bounds(ge=-100, le=100)] | None, null_as("n_labeled")]
    worst: tuple[WorstImage, ...]
    images: str
    runtime: str
