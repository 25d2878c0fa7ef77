"""A teacher that is a file of probabilities: any model outside of kdedge.

It has one answer for an image, whatever its crop. Training looks images up by their keys. Images
that are measured are looked up by their contents, so that labeled images are found where they are
among the unlabeled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdedge.clip.find import FoundBackbone
from kdedge.data.images import Images
from kdedge.data.probabilities import read_probabilities
from kdedge.methods.protocol import Teacher
from kdedge.setup.classes import Classes


class FileTeacher:
    """The probabilities that a file holds, as a teacher without image features.

    Args:
        path: the file.
        classes: the student's class list.
        unlabeled: all images of `data.unlabeled`, those that are held out too.

    Attributes:
        provenance: hash of what it teaches.

    Raises:
        DataError: the file is wrong, or lacks an image.
    """

    run: str | None = None
    scale = 1.0

    def __init__(self, path: Path, classes: Classes, unlabeled: Images) -> None:
        keys = [unlabeled.source.items[index].key for index in unlabeled.indices]
        found = read_probabilities(path, keys=keys, class_names=classes.names)
        self.provenance = found.sha256
        # Logarithms, whose softmax gives the probabilities back; of 0, the smallest number's
        smallest = torch.finfo(torch.float32).tiny
        self._logits = torch.from_numpy(found.values).clamp_min(smallest).log()
        self._row_of_key = found.rows
        self._row_of_contents = {
            unlabeled.digests[index]: row for row, index in enumerate(unlabeled.indices)
        }

    def load(self) -> None:
        """Nothing: it is read already."""

    def for_student(self, student: FoundBackbone) -> Teacher:
        """Itself, as it reads no pixels."""
        return self

    def class_vectors(self) -> Tensor:
        """[C, 0]: it has none."""
        return torch.empty(self._logits.shape[1], 0)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 0]: it has none."""
        return images.new_empty(len(images), 0)

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, C], log-probabilities of unlabeled images, by their keys alone."""
        return self._logits[[self._row_of_key[key] for key in keys]].to(features.device)

    def can_answer(self, images: Images) -> bool:
        """Whether it has an answer for each of these images."""
        return all(images.digests[index] in self._row_of_contents for index in images.indices)

    def logits_of(self, images: Images) -> Tensor:
        """[N, C], log-probabilities of images that it can answer, on the CPU."""
        rows = [self._row_of_contents[images.digests[index]] for index in images.indices]
        return self._logits[rows]
