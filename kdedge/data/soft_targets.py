"""Soft labels of images, combined with a teacher's probabilities into what a student learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Combine = Literal["replace", "mix", "multiply"]

_SMALLEST = 1e-8
"""Lower bound of a probability before its logarithm; float16, as labels have, ends at 6e-8."""


@dataclass(frozen=True)
class SoftTargets:
    """Soft labels of a batch, and how they are combined with the teacher's probabilities.

    Attributes:
        probabilities: [B, C] float32, z.
        how: replace: z. mix: (1 - a) p + a z. multiply: p^(1 - a) z^a, normalized.
        weight: a, 0-1.
    """

    probabilities: Tensor
    how: Combine
    weight: float

    def to(self, device: torch.device) -> SoftTargets:
        """The same targets on a device."""
        return replace(self, probabilities=self.probabilities.to(device, non_blocking=True))

    def combine(self, teacher_logits: Tensor) -> Tensor:
        """[B, C] float32, log-probabilities of the targets.

        Args:
            teacher_logits: [B, C], scaled; p is their softmax.
        """
        log_z = self.probabilities.clamp_min(_SMALLEST).log()
        if self.how == "replace":
            return log_z.log_softmax(dim=-1)
        log_p = teacher_logits.float().log_softmax(dim=-1)
        if self.how == "multiply":
            return ((1 - self.weight) * log_p + self.weight * log_z).log_softmax(dim=-1)
        mixed = (1 - self.weight) * log_p.exp() + self.weight * self.probabilities
        return mixed.clamp_min(_SMALLEST).log().log_softmax(dim=-1)


TargetsOf = Callable[[Sequence[int]], SoftTargets]
"""Positions in a source, of a full batch -> their soft targets."""
