"""The several teachers of a student: how much weight each had, and how often it was followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdedge.reporting.blocks import Block, Table
from kdedge.reporting.numbers import figure, percent
from kdedge.results import EvalResult
from kdedge.runs.provenance import TeacherSummary


def teachers_blocks(
    teachers: Sequence[TeacherSummary], results: Mapping[str, EvalResult]
) -> list[Block]:
    """Makes the table of a student's several teachers; nothing of one.

    Args:
        teachers: in the recipe's order.
        results: accuracies, by model.
    """
    if not teachers:
        return []
    cells = []
    for number, one in enumerate(teachers, start=1):
        result = results.get(f"teacher {number}: {one.name}")
        cells.append(
            [
                *(one.name, one.run or "-", figure(one.temperature)),
                percent(one.weight_percent),
                percent(one.followed_percent),
                percent(None if result is None else result.all),
            ]
        )
    header = ["teacher", "run", "temperature", "mean weight, %", "followed, %", "accuracy, %"]
    caption = (
        f"On the {teachers[0].n_images:,} images that the student was measured on. Followed: the"
        " class of the teachers together is that of this one; of teachers that agree, all are"
        " followed. The temperature gives a teacher the first one's mean confidence."
    )
    return [Table("Teachers", header, cells, caption, n_text=2)]
