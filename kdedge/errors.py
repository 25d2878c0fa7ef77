"""The exception tree and its exit codes.

    KdedgeError
    ├── RecipeError        exit 2   recipe text, keys, flags
    ├── DataError          exit 3   images, labels, downloads, untrusted files
    │   └── ShapeError              two class lists or feature sizes that do not belong together
    ├── SetupError         exit 4   packages, drivers, devices
    │   └── MissingPackage
    ├── DivergedError      exit 5   a loss that is not finite
    ├── GateError          exit 6   parity, accuracy, speed floors
    ├── ResourceError      exit 7   memory, disk
    ├── CellsFailed        exit code of the first cell of a suite that failed
    └── Interrupted        exit 130 / 143   SIGINT / SIGTERM, state saved

Anything else that reaches the command line is a bug: exit 1. A message says what happened, where,
what was got and expected, and what to do.
"""

from __future__ import annotations

import signal


class KdedgeError(Exception):
    """An error that its message explains in full; shown without a traceback."""

    exit_code = 1


class RecipeError(KdedgeError):
    """The recipe, a key in it or a flag is wrong."""

    exit_code = 2


class DataError(KdedgeError):
    """Images, labels, class lists or files from outside are wrong."""

    exit_code = 3


class ShapeError(DataError):
    """Two tensors that should describe the same classes or features do not."""


class SetupError(KdedgeError):
    """This machine lacks a package, a file of weights, a driver or a device."""

    exit_code = 4


class MissingPackage(SetupError):  # noqa: N818 - the name says what is wrong, as the exit does
    """An optional package is needed and not installed.

    Args:
        package: the distribution's name.
        extra: the kdedge extra that brings it.
        purpose: what it is needed for, as the start of a sentence: "Training".
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed.\n"
            f"  Install it with: pip install 'kdedge[{extra}]'"
        )


class DivergedError(KdedgeError):
    """Training produced a loss that is not finite."""

    exit_code = 5


class GateError(KdedgeError):
    """A parity, accuracy or speed floor was missed."""

    exit_code = 6


class ResourceError(KdedgeError):
    """Memory or disk ran out, or a folder cannot be written."""

    exit_code = 7


class CellsFailed(KdedgeError):  # noqa: N818 - the name says what is wrong
    """Some cells of a suite failed; the others are finished.

    Args:
        message: which cells, and where their logs are.
        exit_code: of the first of them; 1 for a process that a signal killed.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(KdedgeError):  # noqa: N818 - not an error of anyone's
    """A signal ended the run after its state was saved.

    Args:
        message: what was saved and how to go on.
        signum: the signal's number; the exit code is 128 plus it.
    """

    def __init__(self, message: str, *, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whatever cleans up after Ctrl-C cleans up after it too."""


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",  # of what is not taken through torch's own allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's errors are known by name and text, as torch is not loaded."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
