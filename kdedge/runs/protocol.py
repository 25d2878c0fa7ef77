"""What measuring and teaching ask of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kdedge.runtime.preprocess import Preprocess


class LogitModel(Protocol):
    """A model that computes logits for images in its own preprocessing."""

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of its images."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of its images and logits."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], float32, no graph; in balance where the recipe asks for it."""
        ...


class Model(LogitModel, Protocol):
    """A frozen model of a class list, such as a run or a student's teacher."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C classes, in the order of the logits."""
        ...

    @property
    def scale(self) -> float:
        """`logit_scale.exp()`."""
        ...

    def class_vectors(self) -> Tensor:
        """[C, D], unit length, float32, on the device, no graph; [C, 0] without class vectors."""
        ...

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32, no graph."""
        ...

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """See `methods.protocol.Teacher`; not for a method that is neither of its two kinds."""
        ...
