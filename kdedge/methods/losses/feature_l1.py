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

    # At 768 dimensions about the gradient of `feature` with its own weight: 2 * 2000 * 0.025 per
    # component, if the features are 0.7 apart.
    weight: float = Field(
        100.0,
        gt=0,
        description="Multiplies the loss. The paper does not specify it; with this default the"
        " gradient is about as large as that of feature.",
    )


def feature_l1_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Absolute difference, averaged over images and dimensions.

    Args:
        student_features: [B, D], unit length.
        teacher_features: [B, D], unit length. Treated as constant.
    """
    return F.l1_loss(student_features, teacher_features.detach())


class Loss(DistillationLoss):
    """The absolute difference."""

    needs_equal_dims = True

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar."""
        return feature_l1_loss(outputs.student_features, outputs.teacher_features)
