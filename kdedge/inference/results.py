"""What the classification of an image gives: a prediction, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kdedge.errors import RecipeError
from kdedge.runtime.none_of_these import NONE
from kdedge.runtime.preprocess import UnreadableImage


class ClassScore(NamedTuple):
    """One class of a prediction.

    Attributes:
        class_name: name in the class list.
        score_percent: softmax of the logits, in percent; None for an artifact with head argmax.
    """

    class_name: str
    score_percent: float | None


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        key: identifies the image, such as its path.
        top: the most likely classes, best first.
        is_none: whether the image shows none of the classes, as far as the artifact can tell.
        known_percent: share of the known images, on which the artifact's limit was fitted, that
            look less like its classes; None if it cannot tell.
    """

    key: str
    top: tuple[ClassScore, ...]
    is_none: bool = False
    known_percent: float | None = None

    @property
    def class_name(self) -> str:
        """The most likely class, or `none` if the image shows none of the classes."""
        return NONE if self.is_none else self.top[0].class_name

    @property
    def score_percent(self) -> float | None:
        """Its score; None if the image shows none of the classes, or for the head argmax."""
        return None if self.is_none else self.top[0].score_percent


@dataclass(frozen=True)
class NonFiniteLogits:
    """An image for which the model gives NaN or an infinite logit, such as an overflow in fp16.

    Attributes:
        key: identifies the image, such as its path.
        reason: what was found and what may help, as a sentence without a full stop.
    """

    key: str
    reason: str


Result = Prediction | UnreadableImage | NonFiniteLogits


def best_name(result: Prediction, min_score: float | None) -> str | None:
    """The prediction for an image: its best class, `none`, or None if the score is too low."""
    is_sure = min_score is None or result.is_none or (result.score_percent or 0) >= min_score
    return result.class_name if is_sure else None


def no_scores(needed_by: str, artifact: object) -> RecipeError:
    """The error for what needs the scores of an artifact with the head argmax."""
    return RecipeError(
        f"{needed_by}: {artifact} was exported with the head argmax, which gives no scores.\n"
        "  Export it again with the head scores."
    )
