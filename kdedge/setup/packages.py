"""Checks that the packages for training, and those for serving, are installed."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

from kdedge.errors import MissingPackage
from kdedge.plugins import TRAINING_PACKAGES
from kdedge.targets.protocol import Package

SERVING = tuple(
    Package(name.replace("-", "_"), (name,), "serving over HTTP", extra="serve")
    for name in ("starlette", "uvicorn", "python-multipart", "prometheus-client")
)
"""Packages of the extra serve."""


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: torch, torchvision or open_clip is not installed.
    """
    for module, package in TRAINING_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(package, extra="train", purpose=purpose)
    # Loading takes seconds, on a slow disk a minute; of several processes, rank 0 logs it
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).info("Loading PyTorch.")


def need_serving_packages() -> None:
    """Checks that the packages of the serve extra are installed.

    Raises:
        MissingPackage: one of them is not.
    """
    for package in SERVING:
        if importlib.util.find_spec(package.module) is None:
            raise package.missing("Serving over HTTP")
