"""What the backends on the CPU share: calls, and what a package's errors mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError, ResourceError, is_out_of_memory
from kdedge.runtime.artifact import Pixels

_NO_MEMORY = ("bad_alloc", "bad allocation", "out of memory", "Failed to allocate")


@contextlib.contextmanager
def explaining(
    path: Path,
    what: str,
    runtime: str,
    *,
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, MemoryError),
) -> Iterator[None]:
    """Context in which a package's errors become errors of a file that cannot be loaded or run.

    Args:
        path: the file.
        what: `read`, `loaded` or `run`.
        runtime: the package and its version.
        errors: what the package raises.

    Raises:
        ResourceError: memory ran out.
        DataError: any other of the package's errors.
    """
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split()).rstrip(".")
        is_long = len(reason) > 300  # the end says more than places in the package's source
        shown = f"{reason[:60]} ... {reason[-240:]}" if is_long else reason
        problem = f"{path} cannot be {what} by {runtime}: {shown}.\n"
        if is_out_of_memory(error) or any(sign in reason for sign in _NO_MEMORY):
            remedy = "  Use smaller batches, or close other programs."
            raise ResourceError(problem + remedy) from error
        remedy = "  Copy the file from the export again, or export again."
        raise DataError(problem + remedy) from error


class CpuModel:
    """A loaded file. Several threads may use it; one call at a time runs.

    Args:
        path: the file, for messages.
        runtime: the package and its version.
        batches: smallest and largest batch; None if there is no limit.
        pixels: kind of pixels that it takes.
        image_shape: [3, S, S].
    """

    name: str

    def __init__(
        self,
        path: Path,
        runtime: str,
        *,
        batches: tuple[int, int | None],
        pixels: Pixels,
        image_shape: tuple[int | None, ...],
    ) -> None:
        self.batches, self.pixels, self.image_shape = batches, pixels, image_shape
        self._path, self._runtime = path, runtime
        self._running: contextlib.AbstractContextManager[Any] = threading.Lock()

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits of images that the file takes; of each package."""
        raise NotImplementedError

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C], or features [B, D]; see `Backend.run`.

        Raises:
            DataError: the file does not take these images, or fails.
            ResourceError: memory ran out.
        """
        # Packages may convert other types and shapes, or read them otherwise
        dtype = np.dtype(np.uint8 if self.pixels == "uint8" else np.float32)
        low, high = self.batches
        fits = low <= len(images) <= (high or len(images))
        if images.dtype != dtype or images.shape[1:] != self.image_shape or not fits:
            sizes = str(low) if low == high else f"{low} {f'to {high}' if high else 'or more'}"
            raise DataError(
                f"{self._path} cannot be run on {images.dtype} {list(images.shape)}; expected"
                f" {dtype} [{', '.join([sizes, *map(str, self.image_shape)])}].\n"
                "  Export again, as the file and the artifact do not match."
            )
        with self._running, self._explaining():
            return self._compute(images)

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        return explaining(self._path, "run", self._runtime)

    def describe(self) -> str:
        """The backend, its version and where it runs."""
        return f"{self.name} {self._runtime.rpartition(' ')[2]} CPU"
