"""Affinity mimicking: soft cross-entropy with the teacher's affinities, image to text and back.

Paper: Wu et al., TinyCLIP, ICCV 2023, arXiv:2309.12314. Rows are a batch's images, columns the C
classes. The text-to-image half is a softmax over the batch, so it needs a large batch.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs

SCALE = 50.0
"""TinyCLIP's code sets both logit scales to it in every step (microsoft/Cream)."""


class Settings(LossSettings):
    """Weight and scale of the two cross-entropies."""

    weight: float = Field(1.0, gt=0, description="Multiplies the loss. 1 is TinyCLIP's.")
    scale: float = Field(
        SCALE,
        gt=0,
        le=1000,
        description="Multiplies the cosines of student and teacher before the softmax. 50 is that"
        " of TinyCLIP's code.",
    )


def affinity_loss(
    student_similarities: Tensor, teacher_similarities: Tensor, *, scale: float = SCALE
) -> Tensor:
    """Mean of two cross-entropies with soft targets; gradients equal those of KL divergences.

    Args:
        student_similarities: [B, C], cosines.
        teacher_similarities: [B, C], cosines. Treated as constant.
        scale: multiplies both.

    Returns:
        A scalar; its minimum is the mean entropy of the teacher's affinities, not 0.
    """
    student, teacher = scale * student_similarities, scale * teacher_similarities.detach()
    image_to_text = F.cross_entropy(student, teacher.softmax(dim=1))
    text_to_image = F.cross_entropy(student.T, teacher.T.softmax(dim=1))
    return (image_to_text + text_to_image) / 2


class Loss(DistillationLoss):
    """The two cross-entropies."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._scale = settings.scale

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar."""
        return affinity_loss(
            outputs.student_features @ outputs.student_vectors.T,
            outputs.teacher_features @ outputs.teacher_vectors.T,
            scale=self._scale,
        )
