"""How an artifact tells images that show none of its classes.

An image's score is its largest logit, which is the scaled cosine of its features and the nearest
class vector. Images like those that the model was made for, the known ones, have high scores. An
image whose score is below a limit shows none of the classes. Each file has limits of its own, as
INT8 shifts its logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.records import OPTIONAL, Bounds, Check, PositiveCount, Record

NONE = "none"
"""The answer for an image that shows none of the classes; no class may have this name."""

N_PERCENTILES = 101

Score = Literal["max logit"]


class KnownScore(NamedTuple):
    """How much an image looks like the known ones.

    Attributes:
        percent: share of the known images with a lower score; 0 to 100.
        is_none: whether the image shows none of the classes.
    """

    percent: float
    is_none: bool


def _check_percentiles(values: tuple[float, ...], before: dict[str, Any]) -> None:
    del before
    if len(values) != N_PERCENTILES or any(a > b for a, b in itertools.pairwise(values)):
        raise ValueError(f"{N_PERCENTILES} scores in ascending order")


@dataclass(frozen=True)
class NoneBelow(Record):
    """The limits of one file.

    Attributes:
        limit: an image with a lower score shows none of the classes.
        percentiles: scores of the known images at 0, 1, ..., 100 percent.
        per_class: limits of their own for images that are classified as these classes.
    """

    limit: float
    percentiles: Annotated[tuple[float, ...], Check(_check_percentiles)]
    per_class: Annotated[dict[str, float], OPTIONAL] = field(default_factory=dict)


@dataclass(frozen=True)
class NoneOfThese(Record):
    """How an artifact tells images that show none of its classes.

    Attributes:
        score: the score of an image, see the module's docstring.
        share_percent: wanted share of known images that keep their class.
        images: describes the known images.
        n_images: their number.
    """

    score: Score
    share_percent: Annotated[float, Bounds(ge=50, le=99.9)]
    images: str
    n_images: PositiveCount


def scores_of(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The score of each image, from logits [B, C]: [B]."""
    return np.asarray(logits.max(axis=1), np.float64)


def known_scores(
    logits: npt.NDArray[np.float32], limits: NoneBelow, class_names: Sequence[str]
) -> list[KnownScore]:
    """How much each image looks like the known ones, and whether it shows none of the classes.

    Args:
        logits: [B, C], finite.
        limits: those of the file that gave the logits.
        class_names: C names.
    """
    scores = scores_of(logits)
    own = [limits.per_class.get(name, limits.limit) for name in class_names]
    below = np.asarray(own)[logits.argmax(axis=1)]
    percents = np.interp(scores, limits.percentiles, np.arange(N_PERCENTILES))
    return [
        KnownScore(float(p), bool(s < b)) for p, s, b in zip(percents, scores, below, strict=True)
    ]
