"""Comparison of two classifiers on the same images, and whether the new one is as good.

`agreement.py` compares the logits of a file and of its own float32 model. This file compares the
predicted classes of two artifacts, whose class lists may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

from kdedge.files import printable
from kdedge.inference.lines import visible
from kdedge.inference.results import NonFiniteLogits, Prediction
from kdedge.messages import some_of
from kdedge.records.tables import Table, Tabled, images_text
from kdedge.runtime.none_of_these import NONE
from kdedge.runtime.preprocess import UnreadableImage

# A difference counts as shown if its p-value is below this, the usual level of a test
ALPHA = 0.05

# With fewer images that exactly one model gets right, the test cannot show any difference
_MIN_N = next(n for n in range(1, 99) if 2 * 0.5**n < ALPHA)

_MAX_SHOWN = 20  # images, classes and reasons; `to_dict` has all


def predicted_class(result: Prediction | NonFiniteLogits) -> tuple[str | None, float | None]:
    """The best class of a result and its score; `none` if the image shows none of the classes."""
    if isinstance(result, NonFiniteLogits):
        return None, None
    return result.class_name, result.score_percent


@dataclass(frozen=True)
class ComparedImage:
    """An image with the predictions of two classifiers.

    Attributes:
        image: key of the image.
        old: the old classifier's best class; `none` if it gives no class; None for NaN logits.
        old_score_percent: its score; None if the classifier gives no scores.
        new: the new classifier's best class, in the same way.
        new_score_percent: its score.
        label: name of the true class; None if it is unknown.
    """

    image: str
    old: str | None
    old_score_percent: float | None
    new: str | None
    new_score_percent: float | None
    label: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether the predictions differ; two missing predictions count as different."""
        return self.old != self.new or self.old is None


@dataclass(frozen=True)
class LabeledComparison:
    """Whether the new classifier is at least as good, on images with labels.

    Attributes:
        n_labeled: images with a label of a class that both have.
        n_left_out: images with a label of a class that only one has.
        n_only_old_right: images that only the old one gets right.
        n_only_new_right: images that only the new one gets right.
        old_accuracy_percent: top-1 accuracy of the old classifier.
        new_accuracy_percent: top-1 accuracy of the new one.
        p_value: the p-value of McNemar's exact test, two-sided.
    """

    n_labeled: int
    n_left_out: int
    n_only_old_right: int
    n_only_new_right: int
    old_accuracy_percent: float
    new_accuracy_percent: float
    p_value: float

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        """What the test shows about the new classifier."""
        if self.p_value >= ALPHA:
            return "no difference shown"
        return "better" if self.n_only_new_right > self.n_only_old_right else "worse"

    def sentence(self) -> str:
        """The verdict in words, with the counts that it rests on."""
        n = self.n_only_old_right + self.n_only_new_right
        if not n:
            return "Both get the same images right, so the new one is exactly as good on them."
        image = "the one image" if n == 1 else f"the {n:,} images"
        evidence = (
            f"of {image} that only one of them gets right, the old one gets"
            f" {self.n_only_old_right:,} and the new one {self.n_only_new_right:,} (McNemar's exact"
            f" test, p = {self.p_value:.2g})"
        )
        if self.verdict != "no difference shown":
            return f"The new one is {self.verdict}: {evidence}."
        hint = f" Fewer than {_MIN_N} cannot show one: compare on more." if n < _MIN_N else ""
        return f"No difference is shown: {evidence}.{hint}"

    def accuracies(self) -> str:
        """Both accuracies in words."""
        n = self.n_left_out
        left_out = f"; {images_text(n)} of classes that only one has left out" if n else ""
        return (
            f"old {self.old_accuracy_percent:.2f} %, new {self.new_accuracy_percent:.2f} % on"
            f" {images_text(self.n_labeled)} with labels{left_out}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "verdict": self.verdict, "sentence": self.sentence()}


@dataclass(frozen=True)
class ComparedModel:
    """A model file that was compared.

    Attributes:
        file: the model file, with its folder.
        precision: the file's precision.
        runtime: the runtime that ran it.
        n_classes: number of its classes.
    """

    file: str
    precision: str
    runtime: str
    n_classes: int

    def __str__(self) -> str:
        return f"{self.file} ({self.precision}), {self.n_classes:,} classes, on {self.runtime}"


class PredictedCounts(NamedTuple):
    """Numbers of images that the old and the new classifier predict as one class."""

    old: int
    new: int


@dataclass(frozen=True)
class Comparison(Tabled):
    """Two artifacts on the same images; printed and shown in a notebook as a table of changes.

    Attributes:
        old: the old artifact's file.
        new: the new one's.
        n_images: images that were classified.
        n_with_unshared_class: images for which one predicts a class that the other lacks;
            agreement leaves them out.
        n_agree: images with the same prediction.
        mean_score_difference: the new score of the best class minus the old one, percentage points;
            None if one of them has no scores.
        mean_absolute_score_difference: the same without the sign.
        only_old: classes that only the old artifact has.
        only_new: classes that only the new one has.
        n_shared: number of classes that both have.
        changed: the images whose predictions differ, in their order.
        classes: class -> images that the old and the new one predict as it; in the old order, then
            new classes, then `none`.
        labeled: accuracies; None if no image has a label.
        unreadable: images that cannot be read, which are left out.
        n_nonfinite: logits with NaN or infinity; their images count as changed.
    """

    old: ComparedModel
    new: ComparedModel
    n_images: int
    n_with_unshared_class: int
    n_agree: int
    mean_score_difference: float | None
    mean_absolute_score_difference: float | None
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    n_shared: int
    changed: tuple[ComparedImage, ...]
    classes: dict[str, PredictedCounts]
    labeled: LabeledComparison | None
    unreadable: Sequence[UnreadableImage]
    n_nonfinite: int

    @property
    def agreement_percent(self) -> float | None:
        """Share of images with the same prediction; None if no image has classes that both have."""
        n_compared = self.n_images - self.n_with_unshared_class
        return 100 * self.n_agree / n_compared if n_compared else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        labeled = None if self.labeled is None else self.labeled.to_dict()
        values = {**asdict(self), "agreement_percent": self.agreement_percent, "labeled": labeled}
        for image in values["changed"]:
            image["image"] = printable(image["image"])
        for failed in values["unreadable"]:
            failed["image"] = printable(failed.pop("key"))
        return values

    @property
    def table(self) -> Table:
        """The first images whose class changed."""
        has_labels = self.labeled is not None
        header = ["image", "old", "score", "new", "score"]
        if has_labels:
            header.append("label")
        rows = []
        for x in self.changed[:_MAX_SHOWN]:
            cells = [visible(x.image), *_cells(x.old, x.old_score_percent)]
            cells += _cells(x.new, x.new_score_percent)
            if has_labels:
                cells.append(visible(x.label or "-"))
            rows.append(cells)
        return Table("", header, rows)

    @property
    def verdict(self) -> str:
        """Whether the new one is as good, in words; empty if no image has a label."""
        if self.labeled is None:
            return ""
        old, new = self.old.precision, self.new.precision
        if old == new:
            return self.labeled.sentence()
        return f"{self.labeled.sentence()} The old file is {old} and the new one {new}."

    @property
    def notes(self) -> list[str]:
        """The files that were compared, and the figures."""
        notes = []
        n_more = len(self.changed) - _MAX_SHOWN
        if n_more > 0:
            notes.append(f"and {n_more:,} more changed predictions")
        if not self.changed:
            notes.append("No prediction has changed.")
        changed_counts = self._changed_counts()
        if changed_counts:
            notes.append(f"how often a class is predicted: {_listed(changed_counts)}")
        notes += some_of((f"{visible(x.key)}: {x.reason}" for x in self.unreadable), _MAX_SHOWN)
        notes += [
            f"old: {self.old}",
            f"new: {self.new}",
            f"{images_text(self.n_images)}, and {len(self.unreadable):,} unreadable;"
            f" {self.n_nonfinite:,} predictions with NaN or infinity",
            f"{self.n_shared:,} classes that both have",
        ]
        for which, names in (("old", self.only_old), ("new", self.only_new)):
            if names:
                notes.append(f"only the {which} one has {_listed(map(visible, names))}")
        if self.agreement_percent is None:
            notes.append("agreement: none, as each predicted class is one that the other lacks")
        else:
            notes.append(
                f"agreement {self.agreement_percent:.2f} %: {self.n_agree:,} of"
                f" {images_text(self.n_images - self.n_with_unshared_class)};"
                f" {self.n_with_unshared_class:,} with a class that only one has left out"
            )
        if self.mean_score_difference is None:
            notes.append("scores: not compared, as an artifact's head is argmax, without scores")
        else:
            notes.append(
                f"score, new minus old: {self.mean_score_difference:+.2f} points on average,"
                f" {self.mean_absolute_score_difference:.2f} without the sign"
            )
        if self.labeled is not None:
            notes += [f"accuracy: {self.labeled.accuracies()}", self.verdict]
        return notes

    def _changed_counts(self) -> list[str]:
        """How often each changed class is predicted, old and new; the most changed first."""
        differing = [name for name, counts in self.classes.items() if counts.old != counts.new]
        differing.sort(
            key=lambda name: abs(self.classes[name].new - self.classes[name].old), reverse=True
        )
        texts = []
        for name in differing:
            counts = self.classes[name]
            texts.append(f"{visible(name)} {counts.old:,} -> {counts.new:,}")
        return texts


def _cells(name: str | None, score: float | None) -> list[str]:
    return [visible(name or "-"), "-" if score is None else f"{score:.2f} %"]


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(some_of(texts, _MAX_SHOWN))


def compare_predictions(
    images: Sequence[ComparedImage],
    old: ComparedModel,
    new: ComparedModel,
    *,
    old_names: Sequence[str],
    new_names: Sequence[str],
    unreadable: Sequence[UnreadableImage],
) -> Comparison:
    """Compares the predictions of two classifiers; classes are the same if their names are.

    Args:
        images: one or more images, each with both predictions.
        old: the old model's file.
        new: the new model's file.
        old_names: the old classifier's classes, in any order.
        new_names: the new classifier's classes.
        unreadable: images that cannot be read, for the record.
    """
    shared = set(old_names) & set(new_names)
    known_to_both = {*shared, NONE, None}
    comparable = [i for i in images if {i.old, i.new} <= known_to_both]
    differences = [
        i.new_score_percent - i.old_score_percent
        for i in images
        if i.old_score_percent is not None and i.new_score_percent is not None
    ]
    only_new = tuple(name for name in new_names if name not in shared)
    old_counts = Counter(i.old for i in images)
    new_counts = Counter(i.new for i in images)
    classes = [*old_names, *only_new]
    if NONE in old_counts or NONE in new_counts:
        classes.append(NONE)
    return Comparison(
        old=old,
        new=new,
        n_images=len(images),
        n_with_unshared_class=len(images) - len(comparable),
        n_agree=sum(not i.is_changed for i in comparable),
        mean_score_difference=fmean(differences) if differences else None,
        mean_absolute_score_difference=fmean(map(abs, differences)) if differences else None,
        only_old=tuple(name for name in old_names if name not in shared),
        only_new=only_new,
        n_shared=len(shared),
        changed=tuple(i for i in images if i.is_changed),
        classes={name: PredictedCounts(old_counts[name], new_counts[name]) for name in classes},
        labeled=_compare_labeled([i for i in images if i.label is not None], shared),
        unreadable=unreadable,
        n_nonfinite=old_counts[None] + new_counts[None],
    )


def _compare_labeled(
    images: Sequence[ComparedImage], shared: Collection[str]
) -> LabeledComparison | None:
    """The accuracies on images with labels, and the test; None if no label is a shared class."""
    known = [image for image in images if image.label in shared]
    if not known:
        return None
    old_right = [image for image in known if image.label == image.old]
    new_right = [image for image in known if image.label == image.new]
    n_only_old = len([image for image in old_right if image.label != image.new])
    n_only_new = len([image for image in new_right if image.label != image.old])
    return LabeledComparison(
        n_labeled=len(known),
        n_left_out=len(images) - len(known),
        n_only_old_right=n_only_old,
        n_only_new_right=n_only_new,
        old_accuracy_percent=100 * len(old_right) / len(known),
        new_accuracy_percent=100 * len(new_right) / len(known),
        p_value=mcnemar_p(n_only_old, n_only_new),
    )


def mcnemar_p(n_only_old_right: int, n_only_new_right: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996).

    If both classifiers are equally good, each image that only one gets right is a fair coin: the
    smaller count is binomial with probability 1/2.

    Args:
        n_only_old_right: images that only the old classifier gets right.
        n_only_new_right: images that only the new one gets right.
    """
    n = n_only_old_right + n_only_new_right
    term = 1  # a binomial coefficient, exact
    tail = 0
    for k in range(min(n_only_old_right, n_only_new_right) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))
