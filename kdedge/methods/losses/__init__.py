"""How a student can learn from a teacher's answers: one loss a file, found by its name.

A loss file holds the function, its published `WEIGHT`, and a module `Loss` that calls it on a
batch's `Answers` and keeps what the loss itself learns. In the class-prompt setting the texts are
the C classes and not a batch's captions, so the image side has B rows and the text side C.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from torch import Tensor

LossName = Literal["kl", "feature", "feature_l1", "relational", "interactive", "affinity"]


@dataclass(frozen=True)
class Answers:
    """What student and teacher say about a batch, of one dtype, float32 in training.

    Attributes:
        student_features: [B, D_student], unit length, with gradients.
        teacher_features: [B, D_teacher], unit length, of the same crops; constant.
        student_vectors: [C, D_student], unit length, what the student answers with: the teacher's
            class vectors, or its own with gradients.
        teacher_vectors: [C, D_teacher], unit length; constant.
        student_scale: the student's `logit_scale.exp()`.
        teacher_scale: the teacher's.
        temperature: softens both logits, of `kl` alone.
    """

    student_features: Tensor
    teacher_features: Tensor
    student_vectors: Tensor
    teacher_vectors: Tensor
    student_scale: float
    teacher_scale: float
    temperature: float = 1.0

    @property
    def student_logits(self) -> Tensor:
        """[B, C], scaled."""
        return self.student_scale * self.student_features @ self.student_vectors.T

    @property
    def teacher_logits(self) -> Tensor:
        """[B, C], scaled."""
        return self.teacher_scale * self.teacher_features @ self.teacher_vectors.T


def list_losses() -> tuple[str, ...]:
    """Names of all losses, without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(file.stem for file in files if not file.stem.startswith("_")))


def load_loss(name: LossName) -> ModuleType:
    """Imports a loss's module, which holds `WEIGHT` and `Loss`."""
    return importlib.import_module(f"{__name__}.{name}")
