"""Comparison of two classifiers' answers on the same images, and whether the new one is as good.

`agreement.py` compares a file's logits with its own float32 student's. This file
compares what two artifacts answer, whose class lists may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from kdedge.errors import DataError, some_of
from kdedge.files import printable
from kdedge.inference.lines import NonFiniteLogits, Prediction, UnreadableImage, visible
from kdedge.records.tables import Table, Tabled, images_text
from kdedge.runtime.none_of_these import NONE

ALPHA = 0.05
"""Probability below which a difference counts as shown: the usual level of a test."""

_FEWEST = next(n for n in range(1, 99) if 2 * 0.5**n < ALPHA)
"""The test needs as many images that exactly one model gets right, or it can show no difference."""

_MOST_SHOWN = 20  # images, classes and reasons; the record has all

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class ModelOutput:
    """A classifier's answer for an image.

    Attributes:
        class_name: its best class; None if it answers "none of these", or nothing.
        score_percent: score of its best class; None if it gives no scores.
        is_none: whether it answers "none of these".
    """

    class_name: str | None
    score_percent: float | None = None
    is_none: bool = False

    @classmethod
    def of(cls, result: Prediction | NonFiniteLogits) -> ModelOutput:
        """The answer of a classifier's result; without finite logits there is none."""
        if isinstance(result, NonFiniteLogits):
            return cls(None)
        best = result.top[0]
        return cls(None if result.is_none else best.class_name, best.score_percent, result.is_none)

    def __str__(self) -> str:
        """The class's name, `none`, or a dash for no answer."""
        return self.class_name or (NONE if self.is_none else "-")


@dataclass(frozen=True)
class ComparedImage:
    """An image with two classifiers' answers.

    Attributes:
        image: its key.
        old: the old classifier's answer.
        new: the new one's.
        label: name of its class; None if it is unknown.
    """

    image: str
    old: ModelOutput
    new: ModelOutput
    label: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether the answers differ: as classes, or as none; no answer is like no other."""
        old, new = ((a.class_name, a.is_none) for a in (self.old, self.new))
        return old != new or old == (None, False)


@dataclass(frozen=True)
class ClassCounts:
    """How often two classifiers answer a class.

    Attributes:
        class_name: the class, `none` for none of them.
        n_old: images that the old classifier answers with it.
        n_new: images that the new one answers with it.
    """

    class_name: str
    n_old: int
    n_new: int


@dataclass(frozen=True)
class LabeledComparison:
    """Whether the new classifier is at least as good, on images with labels.

    Attributes:
        n_labeled: images with a label of a class that both have.
        n_left_out: images with a label of a class that only one has.
        n_both_right: images that both get right.
        n_only_old_right: images that only the old one gets right.
        n_only_new_right: images that only the new one gets right.
        p_value: of McNemar's exact test, two-sided.
    """

    n_labeled: int
    n_left_out: int
    n_both_right: int
    n_only_old_right: int
    n_only_new_right: int
    p_value: float

    @property
    def old_accuracy_percent(self) -> float:
        """Top-1 accuracy of the old classifier."""
        return 100 * (self.n_both_right + self.n_only_old_right) / self.n_labeled

    @property
    def new_accuracy_percent(self) -> float:
        """Top-1 accuracy of the new classifier."""
        return 100 * (self.n_both_right + self.n_only_new_right) / self.n_labeled

    @property
    def verdict(self) -> Verdict:
        """What the test shows about the new classifier."""
        if self.p_value >= ALPHA:
            return "no difference shown"
        return "better" if self.n_only_new_right > self.n_only_old_right else "worse"

    def sentence(self) -> str:
        """The verdict in words, with what it rests on."""
        n = self.n_only_old_right + self.n_only_new_right
        if not n:
            return "Both get the same images right, so the new one is exactly as good on them."
        image = "the one image" if n == 1 else f"the {n:,} images"
        rests = (
            f"of {image} that only one of them gets right, the old one gets"
            f" {self.n_only_old_right:,} and the new one {self.n_only_new_right:,} (McNemar's exact"
            f" test, p = {self.p_value:.2g})"
        )
        if self.verdict != "no difference shown":
            return f"The new one is {self.verdict}: {rests}."
        few = f" Fewer than {_FEWEST} cannot show one: compare on more." if n < _FEWEST else ""
        return f"No difference is shown: {rests}.{few}"

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
        return {
            **asdict(self),
            "old_accuracy_percent": self.old_accuracy_percent,
            "new_accuracy_percent": self.new_accuracy_percent,
            "verdict": self.verdict,
            "sentence": self.sentence(),
        }


@dataclass(frozen=True)
class ComparedModel:
    """A model file that was compared.

    Attributes:
        file: the model file, with its folder.
        precision: its precision.
        runtime: what ran it.
        n_classes: number of its classes.
    """

    file: str
    precision: str
    runtime: str
    n_classes: int

    def __str__(self) -> str:
        return f"{self.file} ({self.precision}), {self.n_classes:,} classes, on {self.runtime}"


@dataclass(frozen=True)
class Comparison(Tabled):
    """Two artifacts on the same images; printed and shown in a notebook as a table of changes.

    Attributes:
        old: the old artifact's file.
        new: the new one's.
        n_images: images that were classified.
        n_unshared: images that one answers with a class which the other lacks; agreement
            leaves them out.
        n_agree: images with the same answer.
        mean_score_difference: the new score of the best class minus the old one, percentage points;
            None if one of them has no scores.
        mean_absolute_score_difference: the same without the sign.
        only_old: classes that only the old artifact has.
        only_new: classes that only the new one has.
        n_shared: number of classes that both have.
        changed: the images whose answers differ, in their order.
        classes: counts of each class, in the old order, then new classes, then `none`.
        labeled: accuracies; None if no image has a label.
        unreadable: images that cannot be read, which are left out.
        without_answer: images for which a model gives NaN or infinity; they count as changed.
    """

    old: ComparedModel
    new: ComparedModel
    n_images: int
    n_unshared: int
    n_agree: int
    mean_score_difference: float | None
    mean_absolute_score_difference: float | None
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    n_shared: int
    changed: tuple[ComparedImage, ...]
    classes: tuple[ClassCounts, ...]
    labeled: LabeledComparison | None
    unreadable: Sequence[UnreadableImage] = ()
    without_answer: Sequence[NonFiniteLogits] = ()

    @property
    def agreement_percent(self) -> float | None:
        """Share of the images with the same answer; None if each is answered with unshared ones."""
        n_compared = self.n_images - self.n_unshared
        return 100 * self.n_agree / n_compared if n_compared else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        labeled = None if self.labeled is None else self.labeled.to_dict()
        values = {**asdict(self), "agreement_percent": self.agreement_percent, "labeled": labeled}
        for image in values["changed"]:
            image["image"] = printable(image["image"])
        for failed in (*values["unreadable"], *values["without_answer"]):
            failed["image"] = printable(failed.pop("key"))
        return values

    @property
    def table(self) -> Table:
        """The first images whose class changed."""
        has_labels = self.labeled is not None
        header = ["image", "old", "score", "new", "score", *(["label"] if has_labels else [])]
        rows = []
        for changed in self.changed[:_MOST_SHOWN]:
            cells = [visible(changed.image)]
            for answer in (changed.old, changed.new):
                score = answer.score_percent
                cells += [visible(str(answer)), "-" if score is None else f"{score:.2f} %"]
            rows.append([*cells, *([visible(changed.label or "-")] if has_labels else [])])
        return header, rows

    @property
    def verdict(self) -> str:
        """Whether the new one is as good, in words; empty without labels."""
        old, new = self.old.precision, self.new.precision
        files = "" if old == new else f" The old file is {old} and the new one {new}."
        return "" if self.labeled is None else f"{self.labeled.sentence()}{files}"

    @property
    def notes(self) -> list[str]:
        """What was compared, and the figures."""
        n_more = len(self.changed) - _MOST_SHOWN
        notes = [f"and {n_more:,} more changed answers"] if n_more > 0 else []
        notes += [] if self.changed else ["No answer has changed."]
        counts = sorted(self.classes, key=lambda x: -abs(x.n_new - x.n_old))
        often = [
            f"{visible(x.class_name)} {x.n_old:,} -> {x.n_new:,}"
            for x in counts
            if x.n_old != x.n_new
        ]
        if often:
            notes.append(f"how often a class is the answer: {_listed(often)}")
        notes += some_of((f"{visible(x.key)}: {x.reason}" for x in self.unreadable), _MOST_SHOWN)
        notes += [
            f"old: {self.old}",
            f"new: {self.new}",
            f"{images_text(self.n_images)}, and {len(self.unreadable):,} unreadable;"
            f" {len(self.without_answer):,} answers with NaN or infinity",
            f"{self.n_shared:,} classes that both have",
        ]
        for which, names in (("old", self.only_old), ("new", self.only_new)):
            notes += [f"only the {which} one has {_listed(map(visible, names))}"] if names else []
        if self.agreement_percent is None:
            notes.append("agreement: none, as each answer is a class that one of them lacks")
        else:
            notes.append(
                f"agreement {self.agreement_percent:.2f} %: {self.n_agree:,} of"
                f" {images_text(self.n_images - self.n_unshared)}; {self.n_unshared:,} answered"
                " with a class that only one has left out"
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


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(some_of(texts, _MOST_SHOWN))


def shared_names(old_names: Sequence[str], new_names: Sequence[str]) -> set[str]:
    """The classes that two lists have in common.

    Raises:
        DataError: there is none.
    """
    shared = set(old_names) & set(new_names)
    if not shared:
        raise DataError(
            f"The two class lists have no name in common: {_some(old_names)} and"
            f" {_some(new_names)}.\n  Compare artifacts of the same classes."
        )
    return shared


def compare_answers(
    images: Sequence[ComparedImage],
    old: ComparedModel,
    new: ComparedModel,
    *,
    old_names: Sequence[str],
    new_names: Sequence[str],
) -> Comparison:
    """Compares two classifiers' answers; classes are the same if their names are.

    Args:
        images: with both answers; one or more.
        old: the old model's file.
        new: the new one's.
        old_names: the old classifier's classes, in any order.
        new_names: the new one's.

    Raises:
        DataError: they have no class in common.
    """
    shared = shared_names(old_names, new_names)
    both_know = {*shared, None}  # None: "none of these", or no answer
    comparable = [i for i in images if {i.old.class_name, i.new.class_name} <= both_know]
    differences = [
        i.new.score_percent - i.old.score_percent
        for i in images
        if i.old.score_percent is not None and i.new.score_percent is not None
    ]
    old_counts, new_counts = (
        Counter(answer.class_name for answer in answers if answer.class_name or answer.is_none)
        for answers in ([i.old for i in images], [i.new for i in images])
    )
    only_new = tuple(name for name in new_names if name not in shared)
    # A class may be called as the answer "none of these" is
    classes: list[tuple[str, str | None]] = [(name, name) for name in (*old_names, *only_new)]
    classes += [(NONE, None)] if old_counts[None] or new_counts[None] else []
    labels = [i for i in images if i.label is not None]
    known = [i for i in labels if i.label in shared]
    labeled = None
    if known:
        right = Counter((i.label == i.old.class_name, i.label == i.new.class_name) for i in known)
        labeled = LabeledComparison(
            n_labeled=len(known),
            n_left_out=len(labels) - len(known),
            n_both_right=right[True, True],
            n_only_old_right=right[True, False],
            n_only_new_right=right[False, True],
            p_value=mcnemar_p(right[True, False], right[False, True]),
        )
    return Comparison(
        old=old,
        new=new,
        n_images=len(images),
        n_unshared=len(images) - len(comparable),
        n_agree=sum(not i.is_changed for i in comparable),
        mean_score_difference=fmean(differences) if differences else None,
        mean_absolute_score_difference=fmean(map(abs, differences)) if differences else None,
        only_old=tuple(name for name in old_names if name not in shared),
        only_new=only_new,
        n_shared=len(shared),
        changed=tuple(i for i in images if i.is_changed),
        classes=tuple(ClassCounts(name, old_counts[k], new_counts[k]) for name, k in classes),
        labeled=labeled,
    )


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def mcnemar_p(n_only_old_right: int, n_only_new_right: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996).

    If both classifiers are equally good, each image that only one gets right is a fair coin: the
    smaller count is binomial with probability 1/2.

    Args:
        n_only_old_right: images that only the old classifier gets right.
        n_only_new_right: images that only the new one gets right.
    """
    n = n_only_old_right + n_only_new_right
    term, tail = 1, 0  # binomial coefficients, exact
    for k in range(min(n_only_old_right, n_only_new_right) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    halves: int = 1 << n
    return min(1.0, 2 * tail / halves)
