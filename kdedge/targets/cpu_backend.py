"""Shared code of the backends on the CPU: checks of inputs, and errors of packages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError, KdedgeError, ResourceError, SetupError, is_out_of_memory
from kdedge.packages import Package
from kdedge.runtime.artifact import PixelType
from kdedge.runtime.process import environment_threads

_NO_MEMORY = ("bad_alloc", "bad allocation", "out of memory", "Failed to allocate")


@contextlib.contextmanager
def explaining(
    path: Path, what: str, package: Package, *, too_new: Sequence[str] = ()
) -> Iterator[None]:
    """Context in which a package's errors become errors of a file that cannot be loaded or run.

    Args:
        path: the file.
        what: `read`, `loaded` or `run`, for the message.
        package: the package.
        too_new: parts of the package's messages about a file that needs a newer version of it.

    Raises:
        ResourceError: memory ran out.
        SetupError: the package is too old for the file.
        DataError: any other error of the package.
    """
    try:
        yield
    except KdedgeError:
        raise
    except Exception as error:  # errors of packages have no common class
        reason = " ".join(str(error).split()).rstrip(".")
        runtime = f"{package.distributions[0]} {package.version}"
        if any(text in reason for text in too_new):
            raise SetupError(
                f"{runtime} is too old for {path}: {reason}.\n"
                f"  Update it with: pip install --upgrade {package.distributions[0]}"
            ) from error
        is_long = len(reason) > 300  # its end says more than its middle
        shown = f"{reason[:60]} ... {reason[-240:]}" if is_long else reason
        problem = f"{path} cannot be {what} by {runtime}: {shown}.\n"
        if is_out_of_memory(error) or any(text in reason for text in _NO_MEMORY):
            remedy = "  Use smaller batches, or close other programs."
            raise ResourceError(problem + remedy) from error
        remedy = "  Copy the file from the export again, or export again."
        raise DataError(problem + remedy) from error


class CpuModel:
    """A loaded model file. Several threads may use it; one call runs at a time.

    A subclass defines `name`, `package`, `_open` and `_compute`.

    Args:
        path: the file.
        n_threads: threads of a call; None: the number in OMP_NUM_THREADS, or the package's own
            choice if that is not set.
        built_with: the record of the file's build.

    Raises:
        MissingPackage, BackendUnavailable: the package is not installed.
        SetupError: the package cannot be imported, or is too old for the file.
        DataError: the file is broken.
        ResourceError: memory ran out.
    """

    name: str
    package: Package
    too_new: tuple[str, ...] = ()
    batches: tuple[int, int | None]
    pixels: PixelType
    image_shape: tuple[int | None, ...]

    def __init__(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._built_with = built_with or {}
        self._running: contextlib.AbstractContextManager[Any] = threading.Lock()
        self._model: Any = None
        module = self.package.load()
        with self._explaining("loaded"):
            self._open(module, n_threads or environment_threads())

    def _open(self, module: Any, n_threads: int | None) -> None:
        """Loads the file as `_model` with the package's module, and sets shapes of its input."""
        raise NotImplementedError

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Computes the logits of images whose type and shape are checked."""
        raise NotImplementedError

    def _set_input(self, shape: Sequence[int | None], *, is_bytes: bool) -> None:
        """Sets `batches`, `pixels` and `image_shape` from the input's shape (None: any size)."""
        n_images, *image_shape = shape
        self.batches = (1, None) if n_images is None else (n_images, n_images)
        self.pixels = "uint8" if is_bytes else "float"
        self.image_shape = tuple(image_shape)

    def _explaining(self, what: str) -> contextlib.AbstractContextManager[None]:
        return explaining(self._path, what, self.package, too_new=self.too_new)

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C], or features [B, D]; see `Backend.run`.

        Raises:
            DataError: the file does not take these images, or fails.
            ResourceError: memory ran out.
        """
        # Packages may convert other types and shapes, or misread them
        dtype = np.dtype(np.uint8 if self.pixels == "uint8" else np.float32)
        low, high = self.batches
        fits = low <= len(images) <= (high or len(images))
        if images.dtype != dtype or images.shape[1:] != self.image_shape or not fits:
            if low == high:
                n_images = str(low)
            else:
                n_images = f"{low} or more" if high is None else f"{low} to {high}"
            expected = ", ".join([n_images, *map(str, self.image_shape)])
            raise DataError(
                f"{self._path} cannot be run on {images.dtype} {list(images.shape)}; expected"
                f" {dtype} [{expected}].\n"
                "  Export again, as the file and the artifact do not match."
            )
        with self._running, self._explaining("run"):
            return self._compute(images)

    def describe(self) -> str:
        """Name, version and device of the backend."""
        return f"{self.name} {self.package.version} CPU"

    def close(self) -> None:
        """Frees the model."""
        self._model = None
