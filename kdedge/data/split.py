"""Which classes and which images: base and novel halves, few-shot samples."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence


def base_novel(n_classes: int) -> tuple[range, range]:
    """Returns base and novel classes: the first ceil(n / 2) names of the class list, and the rest.

    Source: CoOp and CoCoOp's base-to-novel protocol (arXiv:2203.05557, section 4.1).
    """
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
        labels: labels of all images in the source.
        indices: the labeled images to draw from, positions in `labels`, in the source's order.
        shots: images per class.
        stream: the random stream; it advances.

    Returns:
        Positions in `labels`, class by class.
    """
    groups: dict[int | None, list[int]] = {}
    for index in indices:
        groups.setdefault(labels[index], []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        chosen += stream.sample(group, shots) if len(group) >= shots else group
    return chosen
