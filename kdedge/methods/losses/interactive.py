"""Interactive contrast: the student's images against the teacher's classes, and the other way.

Paper: Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732, interactive contrastive learning (ICL).
There an image's positive is its caption; here it is the class that the teacher names.
Differs from the authors' code: the learned scale, kept as a logarithm, is used with its exponential
(theirs multiplies by ln(1 / 0.07) = 2.66 itself).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.methods.losses import Answers

WEIGHT = 1.0
"""CLIP-KD's."""

FIRST_SCALE = 1 / 0.07
"""CLIP's and CLIP-KD's (arXiv:2103.00020, section 2.5)."""
MAX_SCALE = 100.0
"""As above."""


def interactive_loss(
    *,
    student_features: Tensor,
    teacher_features: Tensor,
    student_vectors: Tensor,
    teacher_vectors: Tensor,
    named: Tensor,
    scale: Tensor,
) -> Tensor:
    """Mean of two cross-entropies whose positives are what the teacher names.

    Args:
        student_features: [B, D], unit length; each against all `teacher_vectors`.
        teacher_features: [B, D], unit length. Treated as constant.
        student_vectors: [C, D], unit length; each that is named against all `teacher_features`.
            Shared class vectors are constant: that half then reaches `scale` alone.
        teacher_vectors: [C, D], unit length. Treated as constant.
        named: [B] int64, the class that the teacher gives each image.
        scale: multiplies cosine similarities; a scalar with gradients.

    Returns:
        A scalar: the first cross-entropy is averaged over images; the second over the classes that
        are named, each of which shares its target among the images that it is named for.
    """
    image_logits = scale * student_features @ teacher_vectors.detach().T  # [B, C]
    classes = torch.unique(named)
    text_logits = scale * student_vectors[classes] @ teacher_features.detach().T  # [named, B]
    is_named = (classes[:, None] == named).to(text_logits.dtype)
    targets = is_named / is_named.sum(dim=1, keepdim=True)
    return (F.cross_entropy(image_logits, named) + F.cross_entropy(text_logits, targets)) / 2


class Loss(nn.Module):
    """The two cross-entropies with a learned scale.

    Attributes:
        log_scale: scalar, log domain; at most ln 100 whenever it is used.
    """

    needs_equal_dims: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, answers: Answers) -> Tensor:
        """A scalar."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return interactive_loss(
            student_features=answers.student_features,
            teacher_features=answers.teacher_features,
            student_vectors=answers.student_vectors,
            teacher_vectors=answers.teacher_vectors,
            named=answers.teacher_logits.argmax(dim=-1),
            scale=self.log_scale.exp(),
        )
