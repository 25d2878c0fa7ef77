"""Contrastive relations: classes compete for each image, and a batch's images for each class.

Paper: Yang et al., CLIP-KD, CVPR 2024, arXiv:2307.12732, contrastive relational distillation (CRD).
Its image-to-text half is PromptKD's divergence, averaged over images alone. It compares the images
of a batch, so it needs a large batch.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs


class Settings(LossSettings):
    """Weight of the two divergences."""

    weight: float = Field(1.0, gt=0, description="Multiplies the loss. 1 is CLIP-KD's.")


def relational_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean of two divergences of student from teacher: over classes, and over the batch's images.

    Args:
        student_logits: [B, C], scaled.
        teacher_logits: [B, C], scaled by the teacher's own scale. Treated as constant.

    Returns:
        A scalar, at least 0: the first divergence is averaged over images, the second over classes.
    """
    teacher_logits = teacher_logits.detach()
    image_to_text = _divergence(student_logits, teacher_logits)
    text_to_image = _divergence(student_logits.T, teacher_logits.T)
    return (image_to_text + text_to_image) / 2


def _divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence over each row, averaged over rows."""
    return F.kl_div(
        student_logits.log_softmax(dim=-1),
        teacher_logits.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )


class Loss(DistillationLoss):
    """The two divergences of the scaled logits."""

    reads_targets = True

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar."""
        return relational_loss(outputs.student_logits, outputs.target_logits)
