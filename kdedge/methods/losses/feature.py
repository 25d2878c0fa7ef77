"""Feature mimicry: the squared distance of the student's image features from the teacher's.

Paper: Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732, feature distillation (FD); "feature MSE"
in table 4 of PromptKD, arXiv:2403.02781. Of CLIP-KD's two terms the image's is here: the texts are
class vectors, which the student shares.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.methods.losses import Answers

WEIGHT = 2000.0
"""CLIP-KD's; PromptKD's table does not give one."""


def feature_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared difference, averaged over images and dimensions.

    Args:
        student_features: [B, D], unit length.
        teacher_features: [B, D], unit length. Treated as constant.
    """
    return F.mse_loss(student_features, teacher_features.detach())


class Loss(nn.Module):
    """The squared difference."""

    needs_equal_dims: ClassVar[bool] = True

    def forward(self, answers: Answers) -> Tensor:
        """A scalar."""
        return feature_loss(answers.student_features, answers.teacher_features)
