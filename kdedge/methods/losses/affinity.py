"""Affinity mimicking: soft cross-entropy with the teacher's affinities, image to text and back.

Paper: Wu et al., TinyCLIP, ICCV 2023, arXiv:2309.12314. Rows are a batch's images, columns the C
classes. The text-to-image half is a softmax over the batch: it says little with few images in it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.methods.losses import Answers

WEIGHT = 1.0
"""TinyCLIP's."""

SCALE = 50.0
"""TinyCLIP's code sets both logit scales to it in every step (microsoft/Cream)."""


def affinity_loss(student_similarities: Tensor, teacher_similarities: Tensor) -> Tensor:
    """Mean of two cross-entropies with soft targets; their gradients are the divergences'.

    Args:
        student_similarities: [B, C], cosines.
        teacher_similarities: [B, C], cosines. Treated as constant.

    Returns:
        A scalar; its least value is the mean entropy of the teacher's affinities, not 0.
    """
    student, teacher = SCALE * student_similarities, SCALE * teacher_similarities.detach()
    image_to_text = F.cross_entropy(student, teacher.softmax(dim=1))
    text_to_image = F.cross_entropy(student.T, teacher.T.softmax(dim=1))
    return (image_to_text + text_to_image) / 2


class Loss(nn.Module):
    """The two cross-entropies."""

    needs_equal_dims: ClassVar[bool] = False

    def forward(self, answers: Answers) -> Tensor:
        """A scalar."""
        return affinity_loss(
            answers.student_features @ answers.student_vectors.T,
            answers.teacher_features @ answers.teacher_vectors.T,
        )
