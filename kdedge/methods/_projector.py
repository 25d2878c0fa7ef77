"""PromptKD's projector: the student's image features in the teacher's dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.prompts import make_linear


class Projector(nn.Module):
    """Student features to the teacher's dimension (PromptKD, arXiv:2403.02781, section 3.2).

    Hidden layers (linear, batch norm, ReLU), then a linear layer. The paper's depth is 2. Its table
    12 compares it with 1, a single linear layer, and with 3.

    Args:
        student_dim: D_student.
        teacher_dim: D_teacher, also the hidden width.
        generator: on the CPU; draws PyTorch's default for the authors' 1x1 convolutions.
        depth: linear layers, 1 to 3.
    """

    def __init__(
        self, student_dim: int, teacher_dim: int, generator: torch.Generator, *, depth: int = 2
    ) -> None:
        super().__init__()
        self.linear1 = make_linear(student_dim, teacher_dim, generator)
        if depth > 1:
            self.batch_norm = nn.BatchNorm1d(teacher_dim)
            self.linear2 = make_linear(teacher_dim, teacher_dim, generator)
        if depth > 2:
            self.batch_norm2 = nn.BatchNorm1d(teacher_dim)
            self.linear3 = make_linear(teacher_dim, teacher_dim, generator)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers, the first takes the student's features."""
        return tuple(layer for layer in self.children() if isinstance(layer, nn.Linear))

    @property
    def batch_norms(self) -> tuple[nn.BatchNorm1d, ...]:
        """Of all linear layers but the last; a ReLU follows each."""
        return tuple(layer for layer in self.children() if isinstance(layer, nn.BatchNorm1d))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher]."""
        *hidden, last = self.linears
        for linear, norm in zip(hidden, self.batch_norms, strict=True):
            features = F.relu(norm(linear(features)))
        projected: Tensor = last(features)
        return projected
