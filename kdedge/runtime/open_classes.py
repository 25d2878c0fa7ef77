"""Backends of artifacts with open classes: image features become logits on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.runtime.artifact import Artifact, Matrix
from kdedge.runtime.backend import Backend, DeviceTimed, TakesImages


def with_classes(artifact: Artifact, backend: Backend) -> Backend:
    """A backend of one of the artifact's files that gives logits.

    Args:
        artifact: the artifact.
        backend: the loaded file; it is closed if the class matrix cannot be read.

    Returns:
        The same backend, if the classes are in its graph.

    Raises:
        DataError: the class matrix is missing or has changed since it was written.
    """
    if artifact.open_classes is None:
        return backend
    try:
        matrix = load_matrix(artifact)
    except BaseException:
        backend.close()
        raise
    return _OpenClasses(backend, matrix)


def graph_of(backend: Backend) -> tuple[Any, Matrix | None]:
    """What gives the outputs of the graph itself, and the class matrix of these outputs.

    Returns:
        With open classes, the backend that gives features, and the matrix [C, D]; else the same
        backend and None, as the outputs are logits.
    """
    if isinstance(backend, _OpenClasses):
        return backend.graph, backend.matrix
    return backend, None


def load_matrix(artifact: Artifact) -> Matrix:
    """The class matrix [C, D] of an artifact with open classes, after its hash was checked.

    Raises:
        DataError: the file is missing or has changed since it was written.
    """
    assert artifact.open_classes is not None
    matrix: Matrix = np.load(artifact.checked(artifact.open_classes.file), allow_pickle=False)
    return matrix


def class_logits(features: npt.NDArray[np.float32], matrix: Matrix) -> npt.NDArray[np.float32]:
    """Features [B, D] and class matrix [C, D] -> logits [B, C]."""
    logits: npt.NDArray[np.float32] = features @ matrix.T
    return logits


class _OpenClasses:
    """A backend of a graph that gives features, and the product with the class matrix.

    It takes images of any size, or measures time on its device (without the product), if the
    backend does.
    """

    def __init__(self, backend: Backend, matrix: Matrix) -> None:
        self.graph, self.matrix = backend, matrix
        if isinstance(backend, TakesImages):
            self.run_image = lambda image: class_logits(backend.run_image(image), matrix)
        if isinstance(backend, DeviceTimed):
            self.device_ms = backend.device_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`."""
        return class_logits(self.graph.run(images), self.matrix)
