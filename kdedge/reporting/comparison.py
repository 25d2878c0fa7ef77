"""Makes the page of a comparison of two artifacts: figures, counts by class, changed images."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdedge.evaluation.answers import AnswerComparison, AnsweredImage, ClassCounts
from kdedge.inference.lines import printed_key
from kdedge.reporting.blocks import Chapter, Facts, Gallery, GalleryImage, Section, Table
from kdedge.reporting.disagreements import jpeg_uri
from kdedge.reporting.write import render_page
from kdedge.runtime.preprocess import UnusableImage, decode_image

if TYPE_CHECKING:
    from kdedge.evaluation.answers import Answer
    from kdedge.inference.classify import ImageInput

MOST_PICTURES = 60
"""Pictures on a page, about 10 kB each."""

MOST_ROWS = 1000
"""Rows of a table on a page; the files beside it have all."""

_RANKS = {"wrong": 2, "right": 1, None: 0}
_TITLES = {"wrong": "Became wrong", "right": "Became right", None: "Other changed answers"}


class Thumbnails:
    """Pictures of the changed images that say most, at most `MOST_PICTURES`.

    Images that became wrong come first, then those that became right, then others; among them those
    with the highest new score.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[float, ...], AnsweredImage, str]] = []
        self._n_offered = 0

    def offer(self, answered: AnsweredImage, image: ImageInput) -> None:
        """Keeps a picture of an image with changed answers if it is among those that say most."""
        assert not isinstance(image, UnusableImage)  # it was classified
        self._n_offered += 1
        score = answered.new.score_percent or 0.0
        order = _RANKS[answered.became], score, -self._n_offered  # unique by the last
        if len(self._kept) == MOST_PICTURES and order < self._kept[0][0]:
            return
        picture = decode_image(image) if isinstance(image, bytes) else image.copy()
        heapq.heappush(self._kept, (order, answered, jpeg_uri(picture)))
        if len(self._kept) > MOST_PICTURES:
            heapq.heappop(self._kept)

    def taken(self) -> list[tuple[AnsweredImage, str]]:
        """The images with their pictures as data URIs, those that say most first."""
        ordered = sorted(self._kept, key=lambda entry: entry[0], reverse=True)
        return [(answered, picture) for _, answered, picture in ordered]


def page_of_comparison(
    found: AnswerComparison, facts: Sequence[tuple[str, str]], thumbnails: Thumbnails
) -> str:
    """One self-contained HTML file without scripts; every text in it is escaped.

    Args:
        found: the comparison.
        facts: what was compared, and the figures, each with its name.
        thumbnails: pictures of changed images.
    """
    sections = [Section("figures", "Figures", [Facts(list(facts))])]
    galleries = _galleries(found, thumbnails)
    if galleries:
        sections.append(Section("changed", "Changed answers", galleries))
    if found.changed:
        sections.append(Section("table", "All changed answers", [_changed(found)]))
    sections.append(Section("classes", "Classes", [_classes(found)]))
    subtitle = f"{facts[0][1]} → {facts[1][1]}"
    chapter = Chapter("comparison", "Old and new artifact", subtitle, sections, _figures(found))
    return render_page([chapter], "comparison", "from two artifacts and the same images")


def _figures(found: AnswerComparison) -> list[tuple[str, str, str]]:
    agreement = found.agreement_percent
    figures = [
        ("agreement", "-" if agreement is None else f"{agreement:.2f} %", "same answer"),
        ("changed", f"{len(found.changed):,}", f"of {found.n_images:,} images"),
    ]
    labeled = found.labeled
    if labeled is not None:
        old, new = labeled.old_accuracy_percent, labeled.new_accuracy_percent
        figures.append(("accuracy", f"{new:.2f} %", f"old {old:.2f} %"))
        figures.append(("McNemar's test", labeled.verdict, f"p = {labeled.p_value:.2g}"))
    return figures


def _galleries(found: AnswerComparison, thumbnails: Thumbnails) -> list[Gallery]:
    taken = thumbnails.taken()
    caption = f"{len(taken)} of {len(found.changed):,} changed images, highest new score first."
    groups = {
        title: [pair for pair in taken if pair[0].became == became]
        for became, title in _TITLES.items()
    }
    return [
        Gallery(title, [_card(one, picture) for one, picture in group], caption)
        for title, group in groups.items()
        if group
    ]


def _card(one: AnsweredImage, picture: str) -> GalleryImage:
    return GalleryImage(
        printed_key(one.image), picture, one.label, _with_score(one.old), _with_score(one.new)
    )


def _with_score(answer: Answer) -> str:
    score = "" if answer.score_percent is None else f" {answer.score_percent:.1f} %"
    return f"{answer}{score}"


def _changed(found: AnswerComparison) -> Table:
    rows = [
        [
            printed_key(one.image),
            *(str(one.old), str(one.new), one.label or "-"),
            *(_score(one.old), _score(one.new)),
        ]
        for one in found.changed[:MOST_ROWS]
    ]
    more = len(found.changed) - len(rows)
    caption = "In the order of the images; scores of the best class in percent."
    if more:
        caption += f" {more:,} more are in changed.csv."
    header = ("image", "old", "new", "label", "old score", "new score")
    return Table("Changed answers", header, rows, caption, n_text=4, is_folded=True)


def _score(answer: Answer) -> str:
    return "-" if answer.score_percent is None else f"{answer.score_percent:.2f}"


def _classes(found: AnswerComparison) -> Table:
    has_labels = found.labeled is not None
    ordered = sorted(found.classes, key=lambda one: -abs(one.n_new - one.n_old))
    rows = [_class_row(one, found, has_labels=has_labels) for one in ordered[:MOST_ROWS]]
    header = ["class", "old", "new", "difference"]
    if has_labels:
        header += ["images", "old right", "new right"]
    caption = "Images that are answered with each class, the largest difference first."
    return Table("Answers by class", header, rows, caption)


def _class_row(one: ClassCounts, found: AnswerComparison, *, has_labels: bool) -> list[str]:
    only = {"old": found.only_old, "new": found.only_new}
    lacks = next(
        (f" (only {whose})" for whose, names in only.items() if one.class_name in names), ""
    )
    cells = [one.class_name + lacks, f"{one.n_old:,}", f"{one.n_new:,}"]
    cells.append(f"{one.n_new - one.n_old:+,}")
    if has_labels:
        cells += [f"{one.n_labeled:,}", f"{one.n_old_right:,}", f"{one.n_new_right:,}"]
    return cells
