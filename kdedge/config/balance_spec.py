"""The schema of `balance`: what the logits are brought to over the unlabeled images."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdedge.config.fields import Strict

Share = Annotated[float, Field(gt=0, lt=1)]


class BalanceSpec(Strict):
    """Offsets that are subtracted from a model's logits, so that its mean answer is a prior."""

    prior: Literal["auto", "uniform", "labels"] | dict[str, Share] = Field(
        "auto",
        description="Shares of the classes that the model will meet. uniform: all alike. labels:"
        " as among all images of data.labeled, with one more of each class. A mapping of every"
        " class to its share: as you know them. auto: uniform, but careful, as the unlabeled images"
        " may be unequal themselves.",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="Part of the offsets that is subtracted; 1 for all."
    )

    @model_validator(mode="after")
    def _sums_to_one(self) -> BalanceSpec:
        if isinstance(self.prior, dict) and not math.isclose(
            sum(self.prior.values()), 1, abs_tol=1e-3
        ):
            raise ValueError(
                f"has a prior that sums to {sum(self.prior.values()):g}; the shares of all classes"
                " sum to 1"
            )
        return self
