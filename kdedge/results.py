"""Records that commands write and tables read: plain values, full precision, no torch.

Accuracies are in percent (0-100). Nothing is rounded before it is stored; tables round what they
show.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from kdedge._record import Record

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
class EvalResult:
    """What one evaluation of one model on one test set gave.

    Attributes:
        split: `all`, or `base-to-novel`: the first ceil(C / 2) classes against the others.
        selection: which weights were measured: the last epoch's, or the ones with the best
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
    n_images: int
    all: float
    base: float | None
    novel: float | None
    harmonic_mean: float | None
    ece_percent: float
    per_class: dict[str, float | None] = field(default_factory=dict)
    is_own_split: bool = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """What tables say below about comparing it; nothing where there is nothing to say."""
        found = {_CHOSEN_ON_TEST: self.selection == "test", _OWN_SPLIT: self.is_own_split}
        return tuple(text for text, is_so in found.items() if is_so)

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values that JSON holds without loss; `is_own_split` where it is so."""
        values = asdict(self)
        if not self.is_own_split:
            del values["is_own_split"]
        return values

    @classmethod
    def from_dict(cls, value: object) -> EvalResult:
        """Reads what `to_dict` gave, perhaps after a way through JSON.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        remedy = "Run the evaluation again to write a new one."
        record = Record(value, "An evaluation record", remedy=remedy)
        known = dict.fromkeys(entry.name for entry in fields(cls))
        if "is_own_split" not in record.values:
            del known["is_own_split"]
        record.check_keys(*known)
        per_class = record.record("per_class")
        return cls(
            split=record.one_of("split", ("all", "base-to-novel")),
            selection=record.one_of("selection", ("last", "validation", "test")),
            n_images=record.count("n_images", lowest=0),
            all=record.number("all"),
            base=record.optional("base", record.number),
            novel=record.optional("novel", record.number),
            harmonic_mean=record.optional("harmonic_mean", record.number),
            ece_percent=record.number("ece_percent"),
            per_class={
                name: per_class.optional(name, per_class.number) for name in per_class.values
            },
            is_own_split="is_own_split" in known and record.flag("is_own_split"),
        )


@dataclass(frozen=True)
class WorstImage:
    """An image on which a file's answer is furthest from the reference's.

    Attributes:
        image: its key, as the image source names it.
        reference_class: the class that the reference gives.
        predicted_class: the class that the file gives; None where a logit is not finite.
        distance: between the two softmaxes, as in `ParityResult`; None where there are no scores.
    """

    image: str
    reference_class: str
    predicted_class: str | None
    distance: float | None

    @classmethod
    def from_record(cls, record: Record) -> WorstImage:
        """Reads one entry of a parity record's `worst`.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))
        return cls(
            image=record.text("image"),
            reference_class=record.text("reference_class"),
            predicted_class=record.optional("predicted_class", record.text),
            distance=record.optional("distance", lambda key: record.number(key, highest=1)),
        )


@dataclass(frozen=True)
class ParityResult:
    """How far an exported file's answers are from the float32 student's on the same images.

    Attributes:
        n_images: images compared, at least 1.
        n_labeled: those of them whose class is known.
        n_nonfinite: those for which the file gave NaN or an infinite logit, as an overflow in fp16
            does. They count as disagreeing, as wrong, and with the distance 1.
        agreement_percent: images with the same top-1 class in both.
        mean_softmax_distance: mean over images of the total variation distance of the two
            softmaxes, half the sum of absolute differences, 0-1; None where the logits only rank
            (head argmax).
        max_softmax_distance: the largest of them.
        accuracy_percent: of the file on the labeled images; None where there are none.
        reference_accuracy_percent: of the float32 student on them.
        accuracy_drop: reference minus file, in points; below 0 where the file is more accurate.
        worst: at most ten images: those that disagree first, then by distance.
        images: what the images are, as a text.
        runtime: what ran the file, such as "onnxruntime 1.24.4 CPU".
    """

    n_images: int
    n_labeled: int
    n_nonfinite: int
    agreement_percent: float
    mean_softmax_distance: float | None
    max_softmax_distance: float | None
    accuracy_percent: float | None
    reference_accuracy_percent: float | None
    accuracy_drop: float | None
    worst: tuple[WorstImage, ...]
    images: str
    runtime: str

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values that JSON holds without loss."""
        return asdict(self) | {"worst": [asdict(entry) for entry in self.worst]}

    @classmethod
    def from_dict(cls, value: object) -> ParityResult:
        """Reads what `to_dict` gave, perhaps after a way through JSON.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        remedy = "Export again to write a new one."
        return cls.from_record(Record(value, "A parity record", remedy=remedy))

    @classmethod
    def from_record(cls, record: Record) -> ParityResult:
        """Reads what `to_dict` gave, as a part of a larger record.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        record.check_keys(*(entry.name for entry in fields(cls)))
        n_images = record.count("n_images")
        n_labeled = record.count("n_labeled", lowest=0, highest=n_images)
        # Without labels there is no accuracy, and with them there is: all three keys together.
        accuracy = record.number if n_labeled else record.null
        scores = record.null if record.values["mean_softmax_distance"] is None else record.number
        return cls(
            n_images=n_images,
            n_labeled=n_labeled,
            n_nonfinite=record.count("n_nonfinite", lowest=0, highest=n_images),
            agreement_percent=record.number("agreement_percent"),
            mean_softmax_distance=scores("mean_softmax_distance", highest=1),
            max_softmax_distance=scores("max_softmax_distance", highest=1),
            accuracy_percent=accuracy("accuracy_percent"),
            reference_accuracy_percent=accuracy("reference_accuracy_percent"),
            accuracy_drop=accuracy("accuracy_drop", lowest=-100),
            worst=tuple(WorstImage.from_record(entry) for entry in record.records("worst")),
            images=record.text("images"),
            runtime=record.text("runtime"),
        )
