"""Divergence of the student's class probabilities from the teacher's: PromptKD's loss.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, equation 5; Hinton et al. 2015,
arXiv:1503.02531.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.errors import ShapeError
from kdedge.methods.losses import Answers

WEIGHT = 1000.0
"""The authors' launch script; 200 for Flowers102, FGVCAircraft and DTD."""


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of student from teacher, averaged over images and classes.

    Args:
        student_logits: [B, C], scaled. Computed in float32 whatever the model's precision.
        teacher_logits: [B, C], same class order. Treated as constant.
        temperature: softens both; the result grows by its square so that gradient size does not
            depend on it (Hinton et al. 2015, arXiv:1503.02531).

    Returns:
        A scalar, at least 0. The mean also runs over classes, so one image weighs 1 / C: with 12
        classes the same `kd_weight` acts 33 times stronger than with 397.

    Raises:
        ShapeError: the two class counts differ, which means two class lists are in use.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"Student logits {list(student_logits.shape)} and teacher logits"
            f" {list(teacher_logits.shape)} differ: two class lists are in use."
        )
    divergence = F.kl_div(
        (student_logits.float() / temperature).log_softmax(dim=-1),
        (teacher_logits.detach().float() / temperature).log_softmax(dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / student_logits.numel()


class Loss(nn.Module):
    """The divergence at the answers' temperature."""

    needs_equal_dims: ClassVar[bool] = False

    def forward(self, answers: Answers) -> Tensor:
        """A scalar."""
        return distillation_loss(
            answers.student_logits, answers.teacher_logits, temperature=answers.temperature
        )
