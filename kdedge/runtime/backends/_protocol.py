"""What a backend is: a module that finds its engine, and an object that runs one loaded file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdedge.errors import SetupError
from kdedge.runtime.artifact import Pixels


class NotHere(SetupError):  # noqa: N818 - the name says what is wrong, as the exit does
    """This machine was never meant for a backend: it has no such package, driver or device."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """The backend's name, as in `onnxruntime`."""
        ...

    @property
    def batches(self) -> tuple[int, int | None]:
        """The smallest and the largest batch that it takes; None where there is no limit."""
        ...

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Computes the logits of a batch.

        Args:
            images: [B, 3, S, S], RGB: float32 from 0 to 1, or uint8 where the graph takes it.

        Returns:
            [B, C], float32, in an array of its own.

        Raises:
            DataError: the file does not take images of this shape or type.
            SetupError: this machine cannot run it.
        """
        ...

    def describe(self) -> str:
        """What runs it and on what, as in `onnxruntime 1.24.4 CPU`."""
        ...

    def close(self) -> None:
        """Gives back the memory; the object is of no use afterwards. Twice does no harm."""
        ...


class LoadedFile(Backend, Protocol):
    """A loaded model file, which says what it takes."""

    @property
    def pixels(self) -> Pixels:
        """What it takes for a pixel, as `Artifact.pixels` has it."""
        ...

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """[3, S, S] of the images that it takes; None for an axis that it leaves open."""
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """What a backend has besides where a device of its own computes."""

    def device_ms(self, images: npt.NDArray[Any]) -> float:
        """Time that the device takes for a batch, without copies to it and back, in ms.

        Args:
            images: as `Backend.run` takes them.
        """
        ...


class BackendModule(Protocol):
    """A backend's module.

    Attributes:
        NAME: the backend's name.
        TARGET: which `ModelFile.target` it runs.
    """

    NAME: str
    TARGET: str

    def check_environment(self) -> None:
        """Looks for the engine, its libraries and the device that it needs.

        Raises:
            MissingPackage: the Python package is not installed.
            NotHere: the package, the driver or the device is missing.
            SetupError: they are there, and something about them is broken.
        """
        ...

    def load(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> LoadedFile:
        """Loads a model file.

        Args:
            path: the file; its bytes are trusted, so check its hash before.
            n_threads: of the CPU; None for the engine's own choice.
            built_with: what an engine was built with, for the message where it cannot be loaded.

        Raises:
            MissingPackage: the Python package is not installed.
            SetupError: this machine cannot run it.
            DataError: the file is not what it should be.
        """
        ...
