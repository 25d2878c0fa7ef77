"""A backend: a model file in memory, ready to run on this machine."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdedge.runtime.artifact import Pixels


class Backend(Protocol):
    """A loaded model file."""

    @property
    def name(self) -> str:
        """The backend's name, as in `onnxruntime`."""
        ...

    @property
    def batches(self) -> tuple[int, int | None]:
        """The smallest and the largest batch that it takes; None where there is no limit."""
        ...

    @property
    def pixels(self) -> Pixels:
        """What it takes for a pixel, as in `Artifact.pixels`."""
        ...

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """[3, S, S] of the images that it takes; None for an axis that it leaves open."""
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
        """Name, version and device, as in `onnxruntime 1.24.4 CPU` or `tensorrt 10.3 GPU 8.7`."""
        ...

    def close(self) -> None:
        """Frees the memory. The object is of no use afterwards; a second call does no harm."""
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """A backend that can time its device without the copies to it and back."""

    def device_ms(self, images: npt.NDArray[Any]) -> float:
        """Gives the time of one batch on the device, in ms.

        Args:
            images: as `Backend.run` takes them.
        """
        ...
