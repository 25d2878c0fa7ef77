"""What the backends on the CPU share: a package's import, the check of images, errors."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError, KdedgeError, ResourceError, SetupError, is_out_of_memory
from kdedge.runtime.artifact import Pixels
from kdedge.targets.protocol import Package

_N_LETTERS = 300  # of a reason


def import_runtime(
    package: Package,
    attribute: str,
    *,
    module: str = "",
    purpose: str,
    quietly: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    also: str = "",
) -> Any:
    """Imports a package that runs files.

    Args:
        package: the package.
        attribute: what its module has; a folder of type stubs, which can be imported too, has not.
        module: the module, if it is not the package itself.
        purpose: what needs it, as the start of a sentence.
        quietly: makes a context for the import.
        also: another distribution that is to be installed again with it.

    Raises:
        MissingPackage, BackendUnavailable: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    module = module or package.module
    problem: Exception | None = None
    found: Any = None
    try:
        with quietly():
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        is_absent = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        problem = None if is_absent else error
    except (ImportError, OSError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        problem = error
    if problem is not None:
        name = package.distributions[0]
        raise SetupError(
            f"{name} is installed, but cannot be imported: {problem}.\n"
            f"  Reinstall it with: pip install --force-reinstall {name}{also and f' {also}'}"
        ) from problem
    if not hasattr(found, attribute):
        raise package.missing(purpose)
    return found


def explained(
    reason: str, path: Path, what: str, runtime: str, *, is_memory: bool, last: bool = False
) -> KdedgeError:
    """The error for a file that cannot be loaded or run.

    Args:
        reason: the package's own words.
        path: the file.
        what: `loaded` or `run`.
        runtime: the package and its version.
        is_memory: whether memory ran out.
        last: the end of a long reason says more than its start.
    """
    text = " ".join(reason.split()).rstrip(".")
    text = text[-_N_LETTERS:] if last else text[:_N_LETTERS]
    problem = f"{path} cannot be {what} by {runtime}: {text}.\n"
    if is_memory:
        return ResourceError(f"{problem}  Use smaller batches, or close other programs.")
    return DataError(f"{problem}  Copy the file from the export again, or export again.")


class CpuModel:
    """A loaded file. Several threads may use it; one call at a time runs (`running`).

    Args:
        path: the file, for messages.
        runtime: the backend's name and the package's version.
        batches: smallest and largest batch; None without a limit.
        pixels: kind of pixels that it takes.
        image_shape: [3, S, S].
    """

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
        self.running = threading.Lock()

    def check(self, images: npt.NDArray[Any]) -> None:
        """Checks that the file takes images, which packages may convert or read otherwise.

        Raises:
            DataError: they have another shape or type.
        """
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

    def describe(self) -> str:
        """The backend, its version and where it runs."""
        return f"{self._runtime} CPU"
