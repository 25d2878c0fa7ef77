"""What a training step sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a training step sees.

    Attributes:
        images: [B, 3, H, W], augmented and normalized, float32.
        labels: [B] int64, positions in the list of training classes, or None where there are none.
        keys: the images' names, for messages.
    """

    images: Tensor
    labels: Tensor | None
    keys: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, images=self.images.to(device, non_blocking=True), labels=labels)
