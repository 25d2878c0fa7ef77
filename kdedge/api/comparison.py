"""What a comparison of two artifacts found, as text, table and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdedge.api.predict import images_text
from kdedge.evaluation.answers import AnswerComparison, LabeledComparison
from kdedge.inference.lines import printed_key, visible
from kdedge.tables import Table, Tabled

_MOST_NAMED = 10  # class names in a sentence; the record has all


@dataclass(frozen=True)
class Compared:
    """One of the two that were compared.

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


@dataclass(frozen=True)
class FailedImage:
    """An image without an answer.

    Attributes:
        image: its key.
        reason: why, as a sentence without a full stop.
    """

    image: str
    reason: str


class Comparison(Tabled):
    """Two artifacts on the same images; printed and shown in a notebook as a table of changes.

    Attributes:
        old: the old artifact's file.
        new: the new one's.
        found: agreement, changed answers, counts by class, and accuracies where there are labels.
        unreadable: images that cannot be read, which are left out.
        without_answer: images for which a model gives NaN or infinity; they count as changed.
    """

    def __init__(
        self,
        old: Compared,
        new: Compared,
        found: AnswerComparison,
        unreadable: Sequence[FailedImage],
        without_answer: Sequence[FailedImage],
    ) -> None:
        self.old, self.new, self.found = old, new, found
        self.unreadable, self.without_answer = tuple(unreadable), tuple(without_answer)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        failed = {"unreadable": self.unreadable, "without_answer": self.without_answer}
        values = self.found.to_dict()
        for one in values["changed"]:
            one["image"] = printed_key(one["image"])
        return {
            "old": dataclasses.asdict(self.old),
            "new": dataclasses.asdict(self.new),
            **values,
            **{
                name: [{"image": printed_key(x.image), "reason": x.reason} for x in images]
                for name, images in failed.items()
            },
        }

    def classes_text(self) -> str:
        """How the two class lists differ, in a sentence."""
        found = self.found
        if not found.only_old and not found.only_new:
            return f"Both have the same {found.n_shared:,} classes."
        parts = [f"Compared on the {found.n_shared:,} classes that both have"]
        for whose, names in (("old", found.only_old), ("new", found.only_new)):
            if names:
                more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
                shown = ", ".join(map(visible, names[:_MOST_NAMED]))
                parts.append(f"only the {whose} one has {shown}{more}")
        return f"{'; '.join(parts)}."

    def changes(self) -> Table:
        """The changed answers as a header and rows of texts."""
        header = ["image", "old", "score", "new", "score", *(["label"] if self._has_labels else [])]
        rows = []
        for one in self.found.changed:
            cells = [visible(one.image)]
            for answer in (one.old, one.new):
                score = answer.score_percent
                cells += [visible(str(answer)), "-" if score is None else f"{score:.2f} %"]
            rows.append([*cells, *([visible(one.label or "-")] if self._has_labels else [])])
        return header, rows

    def _table(self) -> Table:
        return self.changes()

    @property
    def _has_labels(self) -> bool:
        return self.found.labeled is not None

    @property
    def verdict(self) -> str:
        """Whether the new one is as good, in words; empty without labels."""
        labeled, old, new = self.found.labeled, self.old.precision, self.new.precision
        said = "" if labeled is None else labeled.sentence()
        return said if old == new else f"{said} The old file is {old} and the new one {new}."

    def _notes(self) -> list[str]:
        labeled = self.found.labeled
        return [self.classes_text(), *([] if labeled is None else [self.verdict])]


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared, and the figures, each with its name."""
    found = comparison.found
    rows = [
        (name, f"{one.file} ({one.precision}), {one.n_classes:,} classes, on {one.runtime}")
        for name, one in (("old", comparison.old), ("new", comparison.new))
    ]
    images = images_text(found.n_images)
    if comparison.unreadable:
        images += f", and {len(comparison.unreadable):,} unreadable"
    if comparison.without_answer:
        images += f"; {len(comparison.without_answer):,} answers with NaN or infinity"
    rows += [("images", images), ("classes", comparison.classes_text())]
    if found.agreement_percent is None:
        rows.append(("agreement", "none: each image is answered with a class that one lacks"))
    else:
        n_compared = found.n_images - found.n_unshared
        text = f"{found.agreement_percent:.2f} %: {found.n_agree:,} of {images_text(n_compared)}"
        if found.n_unshared:
            text += f"; {found.n_unshared:,} answered with a class that only one has left out"
        rows.append(("agreement", text))
    if found.mean_score_difference is None or found.mean_absolute_score_difference is None:
        rows.append(("score", "not compared: an artifact has --head argmax, which gives no scores"))
    else:
        rows.append(
            (
                "score",
                f"new minus old {found.mean_score_difference:+.2f} points on average,"
                f" {found.mean_absolute_score_difference:.2f} without the sign",
            )
        )
    if found.labeled is not None:
        rows.append(("accuracy", accuracies_text(found.labeled)))
        rows.append(("as good?", comparison.verdict))
    return rows


def accuracies_text(labeled: LabeledComparison) -> str:
    """Both accuracies in words."""
    left_out = f"; {images_text(labeled.n_left_out)} of classes that only one has left out"
    return (
        f"old {labeled.old_accuracy_percent:.2f} %, new"
        f" {labeled.new_accuracy_percent:.2f} % on {images_text(labeled.n_labeled)} with labels"
        f"{left_out if labeled.n_left_out else ''}"
    )
