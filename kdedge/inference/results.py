"""What a classifier says of one image: its classes, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ClassScore(NamedTuple):
    """One class of a prediction.

    Attributes:
        class_name: as the class list has it.
        score_percent: softmax of the logits; None where the artifact's head only ranks.
    """

    class_name: str
    score_percent: float | None


@dataclass(frozen=True)
class Prediction:
    """What one image shows.

    Attributes:
        key: names the image.
        top: the most likely classes, best first.
    """

    key: str
    top: tuple[ClassScore, ...]


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read or decoded.

    Attributes:
        key: names the image.
        reason: why, as a sentence without a full stop.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class NonFiniteLogits:
    """An image for which the model gives NaN or an infinite logit, as an overflow in fp16 does.

    Attributes:
        key: names the image.
        reason: what was found and what may help, as a sentence without a full stop.
    """

    key: str
    reason: str


Result = Prediction | UnreadableImage | NonFiniteLogits
