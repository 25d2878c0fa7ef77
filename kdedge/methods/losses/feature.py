"""Feature mimicry: squared distance of the student's image features from the teacher's.

Paper: Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732, feature distillation (FD); "feature MSE"
in table 4 of PromptKD, arXiv:2403.02781. CLIP-KD has a second term for texts; here texts are class
vectors, which the student shares.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs


class Settings(LossSettings):
    """Weight of the squared distance."""

    weight: float = Field(
        2000.0, gt=0, le=1e38, description="Multiplies the loss; 2000 is CLIP-KD's."
    )


class Loss(DistillationLoss):
    """Mean squared error of the student's features."""

    needs_equal_dims = True

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar, averaged over images and dimensions."""
        return F.mse_loss(outputs.student_features, outputs.teacher_features.detach())
