"""Interactive contrast: student images against teacher classes, and student classes against images.

Paper: Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732, interactive contrastive learning (ICL).
There an image's positive is its caption; here it is the teacher's top-1 class. It compares the
images of a batch, so it needs a large batch.
Differs from the authors' code: the learned scale, kept as a logarithm, is used with its exponential
(theirs multiplies by ln(1 / 0.07) = 2.66 itself).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs


class Settings(LossSettings):
    """Weight of the two cross-entropies, and the range of their learned scale."""

    weight: float = Field(1.0, gt=0, description="Multiplies the loss. 1 is CLIP-KD's.")
    initial_scale: float = Field(
        1 / 0.07,
        gt=0,
        description="Initial value of the learned scale, which multiplies cosines. 1 / 0.07 is"
        " CLIP's and CLIP-KD's (arXiv:2103.00020, section 2.5).",
    )
    max_scale: float = Field(
        100.0, gt=0, description="Upper limit of the learned scale. 100 is CLIP's and CLIP-KD's."
    )

    @model_validator(mode="after")
    def _starts_in_range(self) -> Settings:
        if self.initial_scale > self.max_scale:
            raise ValueError("has initial_scale above max_scale; lower it, or raise max_scale")
        return self


def interactive_loss(
    *,
    student_features: Tensor,
    teacher_features: Tensor,
    student_vectors: Tensor,
    teacher_vectors: Tensor,
    teacher_classes: Tensor,
    scale: Tensor,
) -> Tensor:
    """Mean of two cross-entropies whose positives are the teacher's top-1 classes.

    Args:
        student_features: [B, D], unit length; each against all `teacher_vectors`.
        teacher_features: [B, D], unit length. Treated as constant.
        student_vectors: [C, D], unit length; each top-1 class against all `teacher_features`.
            Shared class vectors are constant: that half then reaches `scale` only.
        teacher_vectors: [C, D], unit length. Treated as constant.
        teacher_classes: [B] int64, the teacher's top-1 class of each image.
        scale: multiplies cosines; a scalar with gradients.

    Returns:
        A scalar. The first cross-entropy is averaged over images; the second over the top-1
        classes, each with its target spread evenly over its images.
    """
    image_logits = scale * student_features @ teacher_vectors.detach().T  # [B, C]
    classes = torch.unique(teacher_classes)
    text_logits = scale * student_vectors[classes] @ teacher_features.detach().T  # [classes, B]
    is_positive = (classes[:, None] == teacher_classes).to(text_logits.dtype)
    targets = is_positive / is_positive.sum(dim=1, keepdim=True)
    image_to_text = F.cross_entropy(image_logits, teacher_classes)
    return (image_to_text + F.cross_entropy(text_logits, targets)) / 2


class Loss(DistillationLoss):
    """The two cross-entropies with a learned scale.

    Attributes:
        log_scale: scalar, log domain; at most ln(max_scale) whenever it is used.
    """

    needs_equal_dims = True
    reads_targets = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.log_scale = nn.Parameter(torch.tensor(math.log(settings.initial_scale)))
        self._max_log_scale = math.log(settings.max_scale)

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar."""
        with torch.no_grad():
            self.log_scale.clamp_(max=self._max_log_scale)
        return interactive_loss(
            student_features=outputs.student_features,
            teacher_features=outputs.teacher_features,
            student_vectors=outputs.student_vectors,
            teacher_vectors=outputs.teacher_vectors,
            teacher_classes=outputs.target_logits.argmax(dim=-1),
            scale=self.log_scale.exp(),
        )
