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
        """The backend's name, such as `onnxruntime`."""
        ...

    @property
    def batches(self) -> tuple[int, int | None]:
        """Smallest and largest batch; None without a limit."""
        ...

    @property
    def pixels(self) -> Pixels:
        """Kind of pixels in its input, as in `Artifact.pixels`."""
        ...

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """[3, S, S], shape of one image of its input; None for an axis of any size."""
        ...

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Computes the logits of a batch.

        Args:
            images: [B, 3, S, S], RGB: float32 from 0 to 1, or uint8, as `pixels` says.

        Returns:
            [B, C], float32, a new array.

        Raises:
            DataError: the file does not take images of this shape or type.
            SetupError: this machine cannot run the file.
        """
        ...

    def describe(self) -> str:
        """Name, version and device, such as `onnxruntime 1.24.4 CPU` or `tensorrt 10.3 GPU 8.7`."""
        ...

    def close(self) -> None:
        """Frees the memory. Afterwards the object cannot be used; a second call has no effect."""
        ...


@runtime_checkable
class TakesImages(Protocol):
    """A backend whose file resizes, crops and scales images itself."""

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Computes the logits of an image of any size.

        Args:
            image: [H, W, 3], uint8, RGB, upright.

        Returns:
            [1, C], float32, a new array.

        Raises:
            DataError: the file does not take the image.
            ResourceError: memory ran out.
        """
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """A backend that can measure the time on its device without copies."""

    def device_ms(self, images: npt.NDArray[Any]) -> float:
        """Time of one batch on the device, in ms.

        Args:
            images: as `Backend.run` takes them.
        """
        ...
