"""A power of the distance between the student's and the teacher's image features."""

import torch
from pydantic import Field

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs


class Settings(LossSettings):
    """Weight and exponent of the distance."""

    weight: float = Field(1.0, gt=0, description="Multiplies the loss.")
    exponent: float = Field(2.0, gt=0, le=9, description="Exponent of the distance. 2: a square.")


class Loss(DistillationLoss):
    """The mean of `distance ** exponent` over the images of a batch."""

    needs_equal_dims = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.exponent = settings.exponent

    def forward(self, outputs: Outputs) -> torch.Tensor:
        """Gives a scalar from features [B, D] of unit length."""
        distance = (outputs.student_features - outputs.teacher_features).norm(dim=-1)
        return distance.pow(self.exponent).mean()
