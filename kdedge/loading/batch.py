"""The input of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdedge.distributed import SINGLE_PROCESS, ProcessGroup

FeaturesOfViews = Callable[[Sequence[int], int], Tensor]
"""Positions in a source and a view number -> [B, D_teacher] stored teacher features, float32."""

ImageWeights = Callable[[Sequence[int]], Tensor]
"""Positions in a source, of a full batch -> [B] weights of the images' cross-entropy, float32."""


@dataclass(frozen=True)
class Batch:
    """The images of a training step.

    A method that learns from labeled and unlabeled images gets both in one step: the unlabeled
    images in the batch itself, the labeled images in `labeled`. Each part has its own order and is
    sharded on its own.

    Attributes:
        images: [B, 3, H, W], augmented and normalized, float32; with several processes, this rank's
            shard of the B images.
        labels: [B] int64, positions in the list of training classes; None if they are unused.
        keys: the B images' names, for messages.
        teacher_features: [B, D_teacher], the stored teacher's features of these crops; None if the
            teacher has to run.
        clean_images: [B, 3, H, W], the same images, preprocessed as in evaluation; None unless the
            method declares `needs_clean_images`.
        weights: [B] float32, weights of the images' cross-entropies, whose weighted sum is the
            loss; None to average them.
        labeled: labeled images of the step; None unless the method learns from both.
        group: the processes that share the images.
        n_all: B, if it is not the number of `images`.
        micro_batch: images that the image encoder takes at a time; None for this rank's full shard.
    """

    images: Tensor
    labels: Tensor | None
    keys: tuple[str, ...] = ()
    teacher_features: Tensor | None = None
    clean_images: Tensor | None = None
    weights: Tensor | None = None
    labeled: Batch | None = None
    group: ProcessGroup = SINGLE_PROCESS
    n_all: int | None = None
    micro_batch: int | None = None

    @property
    def n_images(self) -> int:
        """B, without the images of `labeled`."""
        return len(self.images) if self.n_all is None else self.n_all

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The names of all images, for messages."""
        return self.keys if self.labeled is None else (*self.keys, *self.labeled.keys)

    def to(self, device: torch.device, *, micro_batch: int | None = None) -> Batch:
        """The same batch on a device, for so many images at a time in the image encoder.

        Copies to a GPU are asynchronous.
        """
        tensors = {key: x for key, x in vars(self).items() if isinstance(x, Tensor)}
        moved: dict[str, Any] = {key: copy_to(x, device) for key, x in tensors.items()}
        labeled = None if self.labeled is None else self.labeled.to(device, micro_batch=micro_batch)
        return replace(self, **moved, labeled=labeled, micro_batch=micro_batch)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device; a copy to a GPU is asynchronous."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # non_blocking has no effect on memory that is not pinned
    return tensor.to(device, non_blocking=True)
