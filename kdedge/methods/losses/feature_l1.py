"""Feature mimicry by absolute differences: "feature L1" in table 4 of PromptKD.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, table 4.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.methods.losses import Answers

WEIGHT = 100.0
"""Ours, as the paper gives none: at 768 dimensions about the gradient of `feature` under its own
weight, 2 * 2000 * 0.025 a component where the features are 0.7 apart."""


def feature_l1_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Absolute difference, averaged over images and dimensions.

    Args:
        student_features: [B, D], unit length.
        teacher_features: [B, D], unit length. Treated as constant.
    """
    return F.l1_loss(student_features, teacher_features.detach())


class Loss(nn.Module):
    """The absolute difference."""

    needs_equal_dims: ClassVar[bool] = True

    def forward(self, answers: Answers) -> Tensor:
        """A scalar."""
        return feature_l1_loss(answers.student_features, answers.teacher_features)
