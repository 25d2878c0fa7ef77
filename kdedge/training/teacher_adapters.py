"""A student's frozen teacher behind one interface: a run of kdedge, or a file of probabilities.

Training images have the student's size and normalization; the teacher gets the same crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.find import UnbuiltBackbone
from kdedge.data.batch import copy_to
from kdedge.data.images import Images
from kdedge.data.probabilities import read_probabilities
from kdedge.errors import RecipeError
from kdedge.files import sha256_json
from kdedge.runs.model import MethodModel
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.classes import Classes


class FileTeacher:
    """A teacher that is a table: class probabilities of each image, read from a file.

    All crops of an image have the same probabilities. Training looks up images by their keys.
    Evaluation looks up images by their contents, which also finds labeled images that are among the
    unlabeled ones.

    Args:
        path: the file.
        classes: the student's class list.
        unlabeled: all images of `data.unlabeled`, including held-out ones.

    Attributes:
        vectors_hash: hash of images and probabilities.

    Raises:
        DataError: the file is wrong, or lacks an image.
    """

    scale = 1.0

    def __init__(self, path: Path, classes: Classes, unlabeled: Images) -> None:
        keys = [unlabeled.source.items[index].key for index in unlabeled.indices]
        probabilities = read_probabilities(path, keys=keys, class_names=classes.names)
        contents = hashlib.sha256(probabilities.tobytes()).hexdigest()
        self.vectors_hash = sha256_json([keys, contents])
        # Logarithms, whose softmax is the probabilities; 0 becomes the smallest positive number
        smallest = torch.finfo(torch.float32).tiny
        self._logits = torch.from_numpy(probabilities).clamp_min(smallest).log()
        self._row_of_key = {key: row for row, key in enumerate(keys)}
        self._row_of_contents = {
            unlabeled.digests[index]: row for row, index in enumerate(unlabeled.indices)
        }

    def class_vectors(self) -> Tensor:
        """[C, 0]: a file has no class vectors."""
        return torch.empty(self._logits.shape[1], 0)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 0]: a file has no image features."""
        return images.new_empty(len(images), 0)

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, C], log-probabilities of unlabeled images, looked up by their keys."""
        return copy_to(self._logits[[self._row_of_key[key] for key in keys]], features.device)

    def can_answer(self, images: Images) -> bool:
        """Whether the file has probabilities of each of these images."""
        return all(images.digests[index] in self._row_of_contents for index in images.indices)

    def logits_of(self, images: Images) -> Tensor:
        """[N, C], log-probabilities of images, on the CPU; see `can_answer`."""
        rows = [self._row_of_contents[images.digests[index]] for index in images.indices]
        return self._logits[rows]


AnyTeacher: TypeAlias = MethodModel | FileTeacher


def adapted_teacher(student: UnbuiltBackbone, teacher: MethodModel) -> ImageTeacher:
    """The teacher for images that are preprocessed for a student.

    This is the same teacher if both have the same preprocessing.

    Raises:
        RecipeError: the teacher needs larger images than the student.
    """
    if teacher.preprocess == student.preprocess:
        return teacher
    if teacher.preprocess.size_px > student.preprocess.size_px:
        raise RecipeError(
            f"The teacher takes images of {teacher.preprocess.size_px} pixels, and student"
            f" {student.name} of {student.preprocess.size_px}.\n"
            "  Both get the same crop: choose a teacher with the student's image size or less."
        )
    return ConvertingTeacher(teacher, student.preprocess)


class ConvertingTeacher:
    """A teacher that converts a student's images to its own size and normalization.

    Attributes:
        preprocess: the student's preprocessing.
        device: device of its inputs.
    """

    def __init__(self, teacher: MethodModel, preprocess: Preprocess) -> None:
        self._teacher, self.preprocess, self.device = teacher, preprocess, teacher.device
        given, own = preprocess, teacher.preprocess
        is_equal_size = given.size_px == own.size_px
        self._is_equal = is_equal_size and (given.mean, given.std) == (own.mean, own.std)
        self._given_mean, self._given_std, self._mean, self._std = (
            torch.tensor(values, device=teacher.device).view(3, 1, 1)
            for values in (given.mean, given.std, own.mean, own.std)
        )

    @property
    def scale(self) -> float:
        """The teacher's scale."""
        return self._teacher.scale

    def class_vectors(self) -> Tensor:
        """[C, D_teacher], the teacher's class vectors."""
        return self._teacher.class_vectors()

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, D_teacher] -> [B, C], the teacher's logits."""
        return self._teacher.teacher_logits(features, keys)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized for the student -> [B, D_teacher], unit length."""
        if self._is_equal:  # only resizing differs, which is done already
            return self._teacher.forward_features(images)
        pixels = images * self._given_std + self._given_mean  # 0-1
        size_px = self._teacher.preprocess.size_px
        if pixels.shape[-1] != size_px:
            size = (size_px, size_px)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self._teacher.forward_features((pixels - self._mean) / self._std)


ImageTeacher: TypeAlias = MethodModel | ConvertingTeacher
"""A teacher that encodes images, prepared as its `preprocess` says."""
