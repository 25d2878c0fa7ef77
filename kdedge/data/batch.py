"""What a training step sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdedge.distributed import SINGLE_PROCESS, ProcessGroup

FeaturesOfViews = Callable[[Sequence[int], int], Tensor]
"""Positions in a source and a view's number -> [B, D_teacher] stored teacher features, float32."""

Weights = Callable[[Sequence[int]], Tensor]
"""Positions in a source, of a whole batch -> [B] weights of the images' cross-entropy, float32."""


@dataclass(frozen=True)
class Batch:
    """What a training step sees.

    Attributes:
        images: [B, 3, H, W], augmented and normalized, float32; where several processes train, this
            one's share of the B images.
        labels: [B] int64, positions in the list of training classes, or None where there are none.
        keys: the B images' names, for messages.
        teacher_features: [B, D_teacher], what the teacher says of these crops, or None where it has
            to be asked.
        clean_images: [B, 3, H, W], the same images as evaluation sees them, or None where no method
            asks for them.
        weights: [B] float32, with which the images' cross-entropies are added up; None where they
            are averaged.
        group: the processes that share the images.
        n_all: B where that is not the number of `images`.
        micro_batch: how many images an image tower takes at a time; None for all of this process's.
    """

    images: Tensor
    labels: Tensor | None
    keys: tuple[str, ...] = ()
    teacher_features: Tensor | None = None
    clean_images: Tensor | None = None
    weights: Tensor | None = None
    group: ProcessGroup = SINGLE_PROCESS
    n_all: int | None = None
    micro_batch: int | None = None

    @property
    def n_images(self) -> int:
        """B."""
        return len(self.images) if self.n_all is None else self.n_all

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=moved(self.labels),
            teacher_features=moved(self.teacher_features),
            clean_images=moved(self.clean_images),
            weights=moved(self.weights),
        )
