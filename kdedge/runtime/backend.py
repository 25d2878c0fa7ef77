"""A backend: a model file in memory, ready to run on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdedge.runtime.artifact import PixelType


class Backend(Protocol):
    """A loaded model file."""

    @property
    def name(self) -> str:
        """The backend's name, such as `onnxruntime`."""

    @property
    def batches(self) -> tuple[int, int | None]:
        """Smallest and largest batch; None if there is no limit."""

    @property
    def pixels(self) -> PixelType:
        """Type of the pixels in its input, as in `Artifact.pixels`."""

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """[3, S, S], shape of one image of its input; None for an axis of any size."""

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Computes the logits of a batch.

        Args:
            images: [B, 3, S, S], RGB; float32 from 0 to 1 or uint8, depending on `pixels`.

        Returns:
            [B, C], float32, a new array.

        Raises:
            DataError: the file does not take images of this shape or type.
            SetupError: this machine cannot run the file.
        """

    def describe(self) -> str:
        """Name, version and device, such as `onnxruntime 1.24.4 CPU` or `tensorrt 10.3 GPU 8.7`."""

    def close(self) -> None:
        """Frees the memory. Afterwards the object cannot be used; a second call has no effect."""


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


@runtime_checkable
class HasMetadata(Protocol):
    """A backend whose file describes itself; see `Artifact.check_metadata`."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata: values by key, which are text or JSON."""


@runtime_checkable
class DeviceTimed(Protocol):
    """A backend that can measure the time on its device without copies."""

    def device_ms(self, images: npt.NDArray[Any]) -> float:
        """Time of one batch on the device, in ms.

        Args:
            images: a batch, as for `Backend.run`.
        """


def to_input(images: npt.NDArray[np.uint8], pixels: PixelType) -> npt.NDArray[Any]:
    """Converts images to the graph's input.

    Args:
        images: [B, S, S, 3], uint8, RGB, resized and cropped.
        pixels: `float` for values from 0 to 1, `uint8` for unchanged pixels.

    Returns:
        [B, 3, S, S], contiguous, float32 or uint8.
    """
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # [B, 3, S, S]
    return planes if pixels == "uint8" else planes.astype(np.float32) / np.float32(255)


def batch_limits(backend: Backend, max_batch: int) -> tuple[int, int]:
    """Smallest and largest batch of a loaded file: `max_batch` images, if it takes as many."""
    low, high = backend.batches
    return low, max(low, min(max_batch, high or max_batch))


def run_batches(
    backend: Backend, images: npt.NDArray[Any], *, max_batch: int, are_inputs: bool = False
) -> npt.NDArray[np.float32]:
    """Computes the logits of any number of images, in batches.

    Copies of the first images fill a batch that is smaller than the backend's smallest batch.

    Args:
        backend: a loaded model file.
        images: [N, S, S, 3], uint8, RGB, resized and cropped; one or more.
        max_batch: batch size, unless the backend's largest batch is smaller.
        are_inputs: whether the images are [N, 3, S, S], as the graph takes them.

    Returns:
        [N, C], float32.
    """
    low, size = batch_limits(backend, max_batch)
    rows = []
    for batch in padded_batches(images, low, size):
        rows.append(backend.run(batch if are_inputs else to_input(batch, backend.pixels)))
    return np.concatenate(rows)[: len(images)]


def padded_batches(images: npt.NDArray[Any], low: int, high: int) -> Iterator[npt.NDArray[Any]]:
    """Splits images into batches of `high`; copies of the first images fill one below `low`."""
    n = len(images)
    for start in range(0, n, high):
        end = max(start + low, min(start + high, n))
        yield images[start:end] if end <= n else images[np.arange(start, end) % n]


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Scores from logits: [B, C] -> [B, C], in float64; the largest logit is subtracted first."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    scores: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores
