"""A teacher that is a file of class probabilities of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.data.probabilities import read_probabilities
from kdedge.files import sha256_json
from kdedge.loading.batch import copy_to
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.classes import Classes


class FileTeacher:
    """A table of class probabilities as a teacher (`methods.base.Teacher`).

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
        # Logarithms, which ridge learns. A 0 is a rounded value: a far smaller one than all others
        # would be most of what it learns
        values = torch.from_numpy(probabilities)
        self._logits = values.clamp_min(values[values > 0].min().clamp(max=1e-4)).log()
        self._row_of_key = {key: row for row, key in enumerate(keys)}
        self._row_of_contents = {
            unlabeled.digests[index]: row for row, index in enumerate(unlabeled.indices)
        }

    def class_vectors(self) -> Tensor:
        """[C, 0]: a file has no class vectors."""
        return torch.empty(self._logits.shape[1], 0)

    def teacher_features(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """[B, 3, H, W] -> [B, 0]: a file has no image features."""
        return images.new_empty(len(images), 0)

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, C], log-probabilities of unlabeled images, looked up by their keys."""
        return copy_to(self._logits[[self._row_of_key[key] for key in keys]], features.device)

    def logits_of(self, images: Images, *, what: str) -> Tensor | None:
        """[N, C], log-probabilities, on the CPU; None if the file lacks one of these images."""
        rows = [self._row_of_contents.get(images.digests[index]) for index in images.indices]
        known = [row for row in rows if row is not None]
        return self._logits[known] if len(known) == len(rows) else None
