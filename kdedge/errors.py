"""The exception tree and its exit codes.

    KdedgeError
    ├── RecipeError        exit 2   recipe text, keys, flags
    ├── DataError          exit 3   images, labels, downloads, untrusted files, sizes of tensors
    ├── SetupError         exit 4   packages, drivers, devices
    │   ├── MissingPackage
    │   └── BackendUnavailable
    ├── DivergedError      exit 5   a loss that is not finite
    ├── GateError          exit 6   agreement, accuracy
    ├── ResourceError      exit 7   memory, disk
    ├── InUseError         exit 8   a folder or a port that another process uses
    ├── CellsFailed        exit code of a suite's first failed cell
    └── Interrupted        exit 130 / 143   SIGINT / SIGTERM, state saved

Any other exception that reaches the command line is a bug: exit 1. A message names the problem, its
place, the actual and the expected value, and a remedy.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdedge.messages import option


class KdedgeError(Exception):
    """An error that the user can fix; the message says how.

    Attributes:
        result: what the call had already made, such as the artifact whose file missed a gate;
            None if it had made nothing.
    """

    exit_code = 1
    result: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes that send it: some errors have other arguments than their message."""
        return Exception.__new__, (type(self), *self.args), vars(self)


class RecipeError(KdedgeError):
    """The recipe, a key in it or a flag is wrong."""

    exit_code = 2


class DataError(KdedgeError):
    """Images, labels, class lists or files from outside are wrong."""

    exit_code = 3


class SetupError(KdedgeError):
    """This machine lacks a package, a weights file, a driver or a device."""

    exit_code = 4


class MissingPackage(SetupError):  # noqa: N818 - the name says what is wrong
    """A needed optional package is not installed.

    Args:
        package: the distribution's name.
        extra: the kdedge extra that installs it.
        purpose: what needs the package, as the start of a sentence: "Training".

    Attributes:
        remedy: sentence with the command that installs it.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self.remedy = f"Install it with: pip install 'kdedge[{extra}]'"
        super().__init__(f"{purpose} needs {package}, which is not installed.\n  {self.remedy}")


class BackendUnavailable(SetupError):  # noqa: N818 - the name says what is wrong
    """This machine lacks a backend's package, driver or device, and none of them is broken."""


class DivergedError(KdedgeError):
    """Training produced a loss that is not finite."""

    exit_code = 5


class GateError(KdedgeError):
    """A limit of agreement or accuracy was missed."""

    exit_code = 6


class ResourceError(KdedgeError):
    """Memory or disk ran out, or a folder cannot be written."""

    exit_code = 7


class InUseError(KdedgeError):
    """Another process uses the folder or the port."""

    exit_code = 8


class CellsFailed(KdedgeError):  # noqa: N818 - the name says what is wrong
    """Some cells of a suite failed; the others are finished.

    Args:
        message: names the failed cells and their logs.
        exit_code: exit code of the first failed cell; 128 + signal if a signal killed it.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(KdedgeError):  # noqa: N818 - not an error
    """A signal ended the run after its state was saved.

    Args:
        message: what was saved and how to continue.
        signum: the signal's number; the exit code is 128 + signum.
    """

    def __init__(self, message: str, *, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as an exception so that code that handles Ctrl-C handles it too."""


def signum_of(interrupt: KeyboardInterrupt) -> int:
    """Returns the signal that caused the interrupt: SIGTERM or SIGINT."""
    return signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT


def survive(interrupt: KeyboardInterrupt) -> None:
    """Marks an interrupt that ends only a part of a command: what fails later has other causes."""
    vars(interrupt)["is_survived"] = True


def is_survived(interrupt: KeyboardInterrupt) -> bool:
    """Whether the command went on after this interrupt on purpose; see `survive`."""
    return "is_survived" in vars(interrupt)


def check_at_least(least: float, **numbers: float | None) -> None:
    """Checks the numbers given to a call; None stands for a default and passes.

    Raises:
        RecipeError: a number is below the least, infinite, or not a number.
    """
    for name, number in numbers.items():
        if number is not None and not least <= number < math.inf:
            named = option(f"--{name.replace('_', '-')}")
            raise RecipeError(f"{named} is {number:g}; it must be {least:g} or more.")


def os_reason(error: OSError) -> str:
    """Returns the operating system's reason in lower case, for use inside a sentence."""
    return (error.strerror or str(error)).lower()


NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
"""Error numbers of a disk without room, with the reason in words."""


def explain_os_error(error: OSError, path: Path) -> ResourceError:
    """Returns the error for a file or folder that could not be written."""
    no_room = NO_ROOM.get(error.errno or 0)
    reason = no_room or os_reason(error)
    remedy = "Free some space, or name" if no_room else "Name"
    return ResourceError(
        f"{path} could not be written: {reason}.\n"
        f"  {remedy} another folder that you may write to. Existing files are unchanged."
    )


@contextlib.contextmanager
def explaining_writes(path: Path) -> Iterator[None]:
    """Context that turns an OSError into the ResourceError of `explain_os_error`."""
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


_OUT_OF_MEMORY = (
    "failed to map segment", "Cannot allocate memory",  # while a library is loaded
    "std::bad_alloc", "can't start new thread",
    "DefaultCPUAllocator", "CUDA out of memory",
    "CUDA error: out of memory",  # not raised by torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Errors of torch, which is not loaded, are known by name and text."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    kinds = (RuntimeError, ImportError, OSError)
    return isinstance(error, kinds) and any(words in text for words in _OUT_OF_MEMORY)
