"""Feature mimicry by absolute differences: "feature L1" in table 4 of PromptKD.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, table 4.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs


class Settings(LossSettings):
    """Weight of the absolute difference."""

    # At 768 dimensions, and features 0.7 apart, the gradient is about that of `feature` with its
    # default weight: 2 * 2000 * 0.025 per component.
    weight: float = Field(
        100.0,
        gt=0,
        le=1e38,
        description="Multiplies the loss; our default, about the gradient of feature.",
    )


class Loss(DistillationLoss):
    """Mean absolute error of the student's features."""

    needs_equal_dims = True

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar, averaged over images and dimensions."""
        return F.l1_loss(outputs.student_features, outputs.teacher_features.detach())
