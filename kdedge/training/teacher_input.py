"""Converts images preprocessed for a student to its teacher's input, with the same crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.find import FoundBackbone
from kdedge.errors import RecipeError
from kdedge.methods.protocol import Teacher
from kdedge.runs.protocol import Model
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.sizes import larger_teacher


def teacher_for(student: FoundBackbone, teacher: Model) -> Teacher:
    """Wraps the teacher so that it takes images that were preprocessed for the student.

    Returns the teacher itself if both use the same size and normalization.

    Raises:
        RecipeError: the teacher needs larger images than the student.
    """
    theirs, ours = teacher.preprocess, student.preprocess
    if (theirs.size_px, theirs.mean, theirs.std) == (ours.size_px, ours.mean, ours.std):
        return teacher
    if theirs.size_px > ours.size_px:
        raise RecipeError(larger_teacher(theirs.size_px, student))
    return _PreparedAgain(teacher, ours)


@dataclass(frozen=True)
class PreparedForStudent:
    """A teacher for images that were prepared for a student, as a teacher store asks it.

    Attributes:
        teacher: takes them.
        preprocess: the student's.
        device: where it takes them.
    """

    teacher: Teacher
    preprocess: Preprocess
    device: torch.device

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized for the student -> [B, D_teacher], unit length."""
        return self.teacher.forward_features(images)


def as_prepared_for(student: FoundBackbone, teacher: Model) -> Model | PreparedForStudent:
    """The teacher as a store of a student's crops asks it: itself if both prepare images equally.

    Raises:
        RecipeError: as of `teacher_for`.
    """
    if teacher.preprocess == student.preprocess:
        return teacher
    adapted = teacher_for(student, teacher)
    return PreparedForStudent(adapted, student.preprocess, teacher.device)


class _PreparedAgain:
    """A teacher that converts a student's images to its own size and normalization."""

    def __init__(self, teacher: Model, ours: Preprocess) -> None:
        self._teacher = teacher
        self._size_px = teacher.preprocess.size_px

        def channels(values: tuple[float, float, float]) -> Tensor:
            return torch.tensor(values, device=teacher.device).view(3, 1, 1)

        self._mean, self._std = channels(teacher.preprocess.mean), channels(teacher.preprocess.std)
        self._our_mean, self._our_std = channels(ours.mean), channels(ours.std)

    @property
    def scale(self) -> float:
        """The teacher's."""
        return self._teacher.scale

    def class_vectors(self) -> Tensor:
        """[C, D_teacher]."""
        return self._teacher.class_vectors()

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, D_teacher] -> [B, C]."""
        return self._teacher.teacher_logits(features, keys)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized for the student -> [B, D_teacher]."""
        pixels = images * self._our_std + self._our_mean  # 0-1
        if pixels.shape[-1] != self._size_px:
            size = (self._size_px, self._size_px)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self._teacher.forward_features((pixels - self._mean) / self._std)
