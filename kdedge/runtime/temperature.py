"""The temperature by which an artifact's logits were divided, so that its scores are calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdedge.records import Positive, PositiveCount, Record

FittedTo = Literal["labels", "teacher"]


@dataclass(frozen=True)
class Temperature(Record):
    """A fitted temperature (Guo et al. 2017, arXiv:1706.04599); top-1 answers do not change.

    It is part of `logit_scale` in the graph or the class matrix: nothing divides at run time.

    Attributes:
        value: the logits of the model as it was trained are divided by it; above 1 they were too
            confident.
        fitted_to: `labels`: lowest negative log-likelihood of labeled images. `teacher`: mean
            confidence on unlabeled images equals the share with the teacher's top-1 class.
        images: describes the images.
        n_images: their number.
    """

    value: Positive
    fitted_to: FittedTo
    images: str
    n_images: PositiveCount
