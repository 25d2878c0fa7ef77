"""Divergence of the student's class probabilities from the teacher's: PromptKD's loss.

Paper: Li et al., PromptKD, CVPR 2024, arXiv:2403.02781, equation 5; Hinton et al. 2015,
arXiv:1503.02531.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from kdedge.errors import DataError
from kdedge.methods.losses import DistillationLoss, LossSettings, Outputs

WEIGHT = 1000.0
"""`kd_weight` of the authors' launch script, which has 200 for Flowers102, FGVCAircraft, DTD."""


class Settings(LossSettings):
    """Weight and temperature of the divergence.

    The divergence is averaged over images and classes. `weight` (the `kd_weight` of the authors'
    code) multiplies that average, so one image weighs `weight / C`. `weight_per_image` is the same
    factor for the average over images only.
    """

    weight: float | None = Field(
        None,
        gt=0,
        le=1e38,
        description="kd_weight: multiplies the divergence averaged over images and C classes;"
        f" {WEIGHT:g}, the PromptKD repository's, unless weight_per_image is given.",
    )
    weight_per_image: float | None = Field(
        None,
        gt=0,
        le=1e38,
        description="weight / C: multiplies the divergence averaged over images only.",
    )
    temperature: float = Field(
        1.0,
        ge=0.01,
        le=1000,
        description="Divides both logits before the divergence (arXiv:2403.02781, section 4.1).",
    )

    @model_validator(mode="after")
    def _one_weight(self) -> Settings:
        if self.weight is not None and self.weight_per_image is not None:
            raise ValueError("has weight and weight_per_image; set only one of them")
        return self

    def weight_for(self, n_classes: int) -> float:
        """`kd_weight`, given directly or per image; one image weighs 1 / n_classes of it."""
        if self.weight_per_image is not None:
            return self.weight_per_image * n_classes
        return WEIGHT if self.weight is None else self.weight


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of student from teacher, averaged over images and classes.

    Args:
        student_logits: [B, C], scaled. Computed in float32 for any precision of the model.
        teacher_logits: [B, C], same class order. Treated as constant.
        temperature: softens both; the result grows by its square so that gradient size does not
            depend on it (Hinton et al. 2015, arXiv:1503.02531).

    Returns:
        A scalar, at least 0. The mean also runs over classes, so one image weighs 1 / C: with 12
        classes the same `kd_weight` acts 33 times stronger than with 397.

    Raises:
        DataError: the two class counts differ, which means two class lists are in use.
    """
    if student_logits.shape != teacher_logits.shape:
        raise DataError(
            f"Student logits {list(student_logits.shape)} and teacher logits"
            f" {list(teacher_logits.shape)} differ in shape.\n"
            "  Use one class list for teacher and student."
        )
    divergence = F.kl_div(
        (student_logits.float() / temperature).log_softmax(dim=-1),
        (teacher_logits.detach().float() / temperature).log_softmax(dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / student_logits.numel()


class Loss(DistillationLoss):
    """The divergence at the settings' temperature."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._temperature = settings.temperature

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar."""
        return distillation_loss(
            outputs.student_logits, outputs.teacher_logits, temperature=self._temperature
        )

    def scalars(self, value: Tensor, n_classes: int) -> dict[str, Tensor]:
        """The divergence averaged over images only, comparable between class lists."""
        return {"divergence_per_image": value * n_classes}
