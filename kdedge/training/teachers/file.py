"""A teacher that is a file of probabilities: any model outside of kdedge.

It has one answer for an image, whatever its crop. Training looks images up by their keys. Images
that are measured are looked up by their contents, so that labeled images are found where they are
among the unlabeled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdedge.config.recipe import ProbabilitiesSpec
from kdedge.data.probabilities import ImageProbabilities, read_probabilities
from kdedge.errors import DataError
from kdedge.files import sha256_json
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images


class FileTeacher:
    """The probabilities that a file holds, as one of several teachers.

    Args:
        spec: names the files.
        classes: the student's class list.
        unlabeled: all images of `data.unlabeled`, those that are held out too.
        test: the test images, if there are any.

    Raises:
        DataError: a file is wrong, or lacks an image.
    """

    run: str | None = None

    def __init__(
        self, spec: ProbabilitiesSpec, classes: Classes, unlabeled: Images, test: Images | None
    ) -> None:
        self._name = spec.unlabeled.name
        self._pool = _read(spec.unlabeled, classes, unlabeled)
        parts = [(self._pool, unlabeled)]
        if spec.test is not None and test is not None:
            parts.append((_read(spec.test, classes, test), test))
            _check_same_classes(spec, parts[0][0], parts[1][0])
        self.provenance = sha256_json([part.sha256 for part, _ in parts])
        self._by_contents: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
        for part, images in parts:
            for index in images.indices:
                row = part.values[part.rows[images.source.items[index].key]]
                self._by_contents.setdefault(images.digests[index], row)

    @property
    def name(self) -> str:
        """See `ListedTeacher`."""
        return self._name

    @property
    def classes(self) -> Sequence[int]:
        """See `ListedTeacher`."""
        return self._pool.classes

    def can_answer(self, images: Images) -> bool:
        """See `ListedTeacher`."""
        return all(images.digests[index] in self._by_contents for index in images.indices)

    def logits_of(self, images: Images, *, what: str) -> Tensor:
        """See `ListedTeacher`."""
        rows = [self._by_contents[images.digests[index]] for index in images.indices]
        return _log(torch.from_numpy(np.stack(rows)))

    def logits_of_keys(self, keys: Sequence[str], device: torch.device) -> Tensor:
        """[B, n], log-probabilities of unlabeled images by their keys."""
        rows = [self._pool.rows[key] for key in keys]
        return _log(torch.from_numpy(self._pool.values[rows]).to(device))


def _check_same_classes(
    spec: ProbabilitiesSpec, pool: ImageProbabilities, test: ImageProbabilities
) -> None:
    if pool.classes != test.classes:
        raise DataError(
            f"{spec.test} has {len(test.classes)} classes, and {spec.unlabeled} has"
            f" {len(pool.classes)}.\n  Write both for the same classes."
        )


def _read(path: Path, classes: Classes, images: Images) -> ImageProbabilities:
    keys = [images.source.items[index].key for index in images.indices]
    return read_probabilities(path, keys=keys, class_names=classes.names, labeled=classes.labeled)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithms, whose softmax gives the probabilities back; of 0, the smallest number's."""
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
