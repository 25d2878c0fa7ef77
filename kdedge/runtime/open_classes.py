"""Backends of artifacts with open classes: image features become logits on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import RecipeError
from kdedge.runtime.artifact import Artifact, Matrix
from kdedge.runtime.backend import Backend, DeviceTimed, TakesImages


def with_classes(artifact: Artifact, backend: Backend) -> Backend:
    """Returns a backend whose outputs are logits.

    Args:
        artifact: the artifact.
        backend: one of its files, loaded; it is closed if the class matrix cannot be read.

    Returns:
        A backend that multiplies features by the class matrix; the same backend if its graph has
        the classes.

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
    """Returns the backend of the graph alone, and the class matrix for its outputs.

    Returns:
        With open classes, the backend whose outputs are features, and the matrix [C, D]. Else the
        same backend and None, since its outputs are logits.
    """
    if isinstance(backend, _OpenClasses):
        return backend.graph, backend.matrix
    return backend, None


def check_gives_logits(artifact: Artifact, user: str) -> None:
    """Checks that an artifact's graphs give logits, which a program without kdedge needs.

    Raises:
        RecipeError: they give image features, as the artifact has open classes.
    """
    if artifact.open_classes is not None:
        raise RecipeError(
            f"The graphs of {artifact.path} give image features, as its classes are open, but"
            f" {user} needs graphs that give logits.\n"
            "  Export the run again without open classes (export.open_classes)."
        )


def load_matrix(artifact: Artifact) -> Matrix:
    """Checks the hash of an artifact's class matrix and returns the matrix, [C, D].

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
    """A backend that multiplies the features of another backend by the class matrix.

    It has `run_image`, or `device_ms` (without the product), if the other backend has it.
    """

    def __init__(self, backend: Backend, matrix: Matrix) -> None:
        self.graph = backend
        self.matrix = matrix
        if isinstance(backend, TakesImages):
            self.run_image = lambda image: class_logits(backend.run_image(image), matrix)
        if isinstance(backend, DeviceTimed):
            self.device_ms = backend.device_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`."""
        return class_logits(self.graph.run(images), self.matrix)
