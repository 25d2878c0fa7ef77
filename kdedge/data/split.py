"""Which classes and which images: base and novel halves, few-shot samples."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from kdedge.errors import DataError


def base_novel(n_classes: int) -> tuple[range, range]:
    """Returns base and novel classes: the first ceil(n / 2) names of the class list, and the rest.

    Source: CoOp and CoCoOp's base-to-novel protocol (arXiv:2203.05557, section 4.1).

    Raises:
        DataError: there are fewer than two classes.
    """
    if n_classes < 2:
        raise DataError(
            f"a base-to-novel split needs two classes or more, the class list has {n_classes}.\n"
            "  Set data.split to all."
        )
    n_base = (n_classes + 1) // 2
    return range(n_base), range(n_base, n_classes)


def few_shot(
    labels: Sequence[int | None], indices: Iterable[int], *, shots: int, stream: random.Random
) -> list[int]:
    """Draws `shots` images per class, exactly as CoOp's data sets do (arXiv:2109.01134).

    Images are grouped by label in order of first appearance. `random.sample` draws from each group
    in turn, from one stream that starts at the run's seed. A class with fewer images gives all of
    them. The protocol draws from all classes; select the base classes afterwards.

    Args:
        labels: of every image in the source.
        indices: the images to draw from, positions in `labels`, in the source's order.
        shots: images per class.
        stream: the random stream; it advances.

    Returns:
        Positions in `labels`, class by class.

    Raises:
        DataError: an image has no label.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}, expected 1 or more.")
    groups: dict[int, list[int]] = {}
    for index in indices:
        label = labels[index]
        if label is None:
            raise DataError(
                f"image number {index} has no label, and drawing {shots} shots needs labels.\n"
                "  Label it or remove it."
            )
        groups.setdefault(label, []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        chosen += stream.sample(group, shots) if len(group) >= shots else group
    return chosen
