"""Installed packages: their versions, and the error for one that is needed and missing."""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.metadata import PackageNotFoundError, version

from kdedge import torchrun
from kdedge.errors import MissingPackage

TRAINING_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "tensorboard": "tensorboard",
}
"""Module -> distribution that provides it, all in the extra train."""

SERVING_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
"""The modules that `kdedge serve` needs, all in the extra serve."""


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PENDING_WARNINGS: list[str] = []
"""Warnings to log before PyTorch is loaded or a file is measured."""


def log_pending_warnings() -> None:
    """Logs the pending warnings and empties the list."""
    while PENDING_WARNINGS:
        logging.getLogger(__name__).warning("%s", PENDING_WARNINGS.pop())


def need(extra: str, purpose: str, *modules: str) -> None:
    """Checks that optional packages are installed.

    Args:
        extra: the kdedge extra that installs them.
        purpose: what needs them, as the start of a sentence: "Training".
        modules: names under which the packages are imported.

    Raises:
        MissingPackage: a package is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            package = TRAINING_PACKAGES.get(module, module.replace("_", "-"))
            raise MissingPackage(package, extra=extra, purpose=purpose)


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: a package is not installed.
    """
    need("train", purpose, *TRAINING_PACKAGES)
    log_pending_warnings()
    # Loading takes seconds, on a slow disk a minute; with several processes, only rank 0 logs it
    if "torch" not in sys.modules and torchrun.rank() == 0:
        logging.getLogger(__name__).info("Loading PyTorch.")
