"""What a loss gets, and what its module holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from kdedge.methods.protocol import MethodSettings


@dataclass(frozen=True)
class Outputs:
    """What student and teacher compute for a batch, all of one dtype, float32 in training.

    Attributes:
        student_features: [B, D_student], unit length, with gradients.
        teacher_features: [B, D_teacher], unit length, of the same crops; constant.
        student_vectors: [C, D_student], unit length, the student's class vectors: the teacher's, or
            its own with gradients.
        teacher_vectors: [C, D_teacher], unit length; constant.
        student_scale: the student's `logit_scale.exp()`.
        teacher_scale: the teacher's `logit_scale.exp()`.
        given_logits: [B, C], of a teacher without class vectors, `teacher_vectors` is then [C, 0];
            None of others.
    """

    student_features: Tensor
    teacher_features: Tensor
    student_vectors: Tensor
    teacher_vectors: Tensor
    student_scale: float
    teacher_scale: float
    given_logits: Tensor | None = None

    @property
    def student_logits(self) -> Tensor:
        """[B, C], scaled."""
        return self.student_scale * self.student_features @ self.student_vectors.T

    @property
    def teacher_logits(self) -> Tensor:
        """[B, C], scaled."""
        if self.given_logits is not None:
            return self.given_logits
        return self.teacher_scale * self.teacher_features @ self.teacher_vectors.T


class LossSettings(BaseModel):
    """Base of every loss's `Settings`: strict types, unknown keys are errors.

    A loss gives `weight` its own default and description.
    """

    model_config = MethodSettings.model_config

    weight: float | None = Field(gt=0, description="Multiplies the loss.")

    def weight_for(self, n_classes: int) -> float:
        """The factor of the loss's value in the sum of all losses, for C classes."""
        assert self.weight is not None  # a loss with an optional weight overrides this method
        return self.weight

    def recorded(self, n_classes: int) -> dict[str, float]:
        """See `MethodSettings.recorded`; nothing unless a loss overrides it."""
        return {}


class DistillationLoss(nn.Module):
    """Base of every loss's `Loss`, which overrides `forward`.

    Its parameters are trained with the student and kept in the student's file.

    Attributes:
        needs_equal_dims: whether D_student and D_teacher must be equal.
    """

    needs_equal_dims: ClassVar[bool] = False

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()

    def forward(self, outputs: Outputs) -> Tensor:
        """A scalar with gradients, before its weight."""
        raise NotImplementedError

    def scalars(self, value: Tensor, n_classes: int) -> dict[str, Tensor]:
        """Values for the log. If empty, the log shows the loss itself as `<name>_loss`."""
        return {}
