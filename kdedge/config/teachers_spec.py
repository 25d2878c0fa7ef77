"""The schema of a recipe's `teachers` and `ensemble`: several teachers, and how they are combined.

One of several teachers has the keys of `teacher`, or names a file of probabilities.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdedge.config.fields import RecipeFile, Strict


class ProbabilitiesSpec(Strict):
    """The class probabilities that a model outside of kdedge gives to images.

    A file is CSV text: the first line is `image` and the class names, every other line an image's
    key and its probabilities.
    """

    unlabeled: RecipeFile = Field(
        description="CSV file with a line for each image of data.unlabeled."
    )
    test: RecipeFile | None = Field(
        None,
        description="CSV file with a line for each image of data.test. Default: none, and the"
        " accuracy of the teachers together is not measured.",
    )


class EnsembleSpec(Strict):
    """How the class probabilities of several teachers become one answer."""

    weights: Literal["equal", "entropy", "confidence"] = Field(
        "equal",
        description="Weights of the teachers, for each image. equal: the mean. entropy:"
        " proportional to exp(-H / tau), H the entropy of a teacher's probabilities in nats."
        " confidence: proportional to its highest probability.",
    )
    tau: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Divides the entropy under weights: entropy, in nats. Small values follow the"
        " most confident teacher alone. 1 is our choice.",
    )
    match_confidence: bool = Field(
        True,
        description="Divide the logits of each further teacher by a temperature, so that its mean"
        " confidence is the first teacher's. Turn it off where a teacher is more confident because"
        " it is better: a linear probe on a strong encoder beside a CLIP that hardly knows the"
        " classes.",
    )
