"""Comparison of two classifiers' answers on the same images, and whether the new one is as good.

`agreement.py` compares a file's logits with its own float32 student's. This file
compares what two artifacts answer, whose class lists may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdedge.errors import DataError
from kdedge.inference.lines import NonFiniteLogits, Prediction
from kdedge.runtime.none_of_these import NONE

ALPHA = 0.05
"""Probability below which a difference counts as shown: the usual level of a test."""

_FEWEST = next(n for n in range(1, 99) if 2 * 0.5**n < ALPHA)
"""The test needs as many images that exactly one model gets right, or it can show no difference."""

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

    @property
    def became(self) -> Literal["wrong", "right"] | None:
        """Whether a right answer became wrong, or a wrong one right; None if neither."""
        was, is_right = (self.label == a.class_name for a in (self.old, self.new))
        if self.label is None or was == is_right:
            return None
        return "right" if is_right else "wrong"


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
class PredictionComparison:
    """Two classifiers' answers on the same images.

    Attributes:
        n_images: images that were classified.
        n_unshared: images that one answers with a class which the other lacks; agreement
            leaves them out.
        n_agree: images with the same answer.
        mean_score_difference: the new score of the best class minus the old one, percentage points;
            None if one of them has no scores.
        mean_absolute_score_difference: the same without the sign.
        only_old: classes that only the old classifier has.
        only_new: classes that only the new one has.
        n_shared: number of classes that both have.
        changed: the images whose answers differ, in their order.
        classes: counts of each class, in the old order, then new classes, then `none`.
        labeled: accuracies; None if no image has a label.
    """

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

    @property
    def agreement_percent(self) -> float | None:
        """Share of the images with the same answer; None if each is answered with unshared ones."""
        n_compared = self.n_images - self.n_unshared
        return 100 * self.n_agree / n_compared if n_compared else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "labeled"},
            "agreement_percent": self.agreement_percent,
            "labeled": None if self.labeled is None else self.labeled.to_dict(),
        }


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


def compare_predictions(
    images: Iterable[ComparedImage], *, old_names: Sequence[str], new_names: Sequence[str]
) -> PredictionComparison:
    """Compares two classifiers' answers; classes are the same if their names are.

    Args:
        images: with both answers; read once.
        old_names: the old classifier's classes, in any order.
        new_names: the new one's.

    Raises:
        DataError: they have no class in common, or there are no images.
    """
    shared = shared_names(old_names, new_names)
    changed: list[ComparedImage] = []
    differences: list[float] = []
    old_counts: Counter[str | None] = Counter()
    new_counts: Counter[str | None] = Counter()
    became: Counter[str | None] = Counter()
    n_images = n_unshared = n_agree = n_left_out = n_both_right = 0
    for image in images:
        n_images += 1
        old, new = image.old, image.new
        if any(a.class_name is not None and a.class_name not in shared for a in (old, new)):
            n_unshared += 1
        elif not image.is_changed:
            n_agree += 1
        if image.is_changed:
            changed.append(image)
        if old.score_percent is not None and new.score_percent is not None:
            differences.append(new.score_percent - old.score_percent)
        for answer, counts in ((old, old_counts), (new, new_counts)):
            if answer.class_name is not None or answer.is_none:
                counts[answer.class_name] += 1
        if image.label in shared:
            became[image.became] += 1
            n_both_right += old.class_name == image.label == new.class_name
        elif image.label is not None:
            n_left_out += 1
    if not n_images:
        raise DataError("There are no images to compare two artifacts on.")
    only_new = tuple(name for name in new_names if name not in shared)
    # A class may be called as the answer "none of these" is
    classes: list[tuple[str, str | None]] = [(name, name) for name in (*old_names, *only_new)]
    if old_counts[None] or new_counts[None]:
        classes.append((NONE, None))
    n, wrong, right = len(differences), became["wrong"], became["right"]
    labeled = None
    if became.total():
        p_value = mcnemar_p(wrong, right)
        labeled = LabeledComparison(became.total(), n_left_out, n_both_right, wrong, right, p_value)
    return PredictionComparison(
        n_images=n_images,
        n_unshared=n_unshared,
        n_agree=n_agree,
        mean_score_difference=math.fsum(differences) / n if n else None,
        mean_absolute_score_difference=math.fsum(map(abs, differences)) / n if n else None,
        only_old=tuple(name for name in old_names if name not in shared),
        only_new=only_new,
        n_shared=len(shared),
        changed=tuple(changed),
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
