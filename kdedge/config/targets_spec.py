"""The schema of `student.targets`: soft labels beside the teacher's probabilities."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdedge.config.fields import Strict


class TargetsSpec(Strict):
    """Soft labels of the unlabeled images, combined with the teacher's probabilities.

    Only losses of class probabilities read them, such as kl.
    """

    kind: Literal["transductive"] = Field(
        description="transductive: labels found from all unlabeled images together (TransCLIP,"
        " arXiv:2406.01837), over all class names, never from test images.",
    )
    combine: Literal["replace", "mix", "multiply"] = Field(
        "mix",
        description="How an image's label z and the teacher's probabilities p of a crop become the"
        " target. replace: z. mix: (1 - weight) p + weight z. multiply: p^(1 - weight) z^weight,"
        " normalized. The default is ours.",
    )
    weight: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Weight of the label in the target; no effect under combine: replace.",
    )
    features: Literal["teacher", "student", "both"] = Field(
        "teacher",
        description="Image features that labels are found from: the teacher's, or those of the"
        " first of several; those of the student's backbone before training; or both side by side,"
        " each with half of the similarity.",
    )
    n_neighbors: int = Field(
        3,
        ge=0,
        le=1000,
        description="Number of nearest neighbors whose labels pull an image's label. 3:"
        " arXiv:2406.01837.",
    )
    prior_weight: float | None = Field(
        None,
        ge=0,
        description="lambda of arXiv:2406.01837: weight of the teacher's probabilities relative to"
        " features and neighbors. Default: 1, or 0.5 with labeled images, as published.",
    )
    mixture_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the distance to class means. 1 is the published update.",
    )
    labeled_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of all labeled images together in the class means, relative to all"
        " unlabeled images. 0: labels are not used.",
    )
