"""Checks that the packages for training are installed."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

from kdedge.errors import MissingPackage


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: torch, torchvision or open_clip is not installed.
    """
    for module, package in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("open_clip", "open_clip_torch"),
    ):
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(package, extra="train", purpose=purpose)
    # Loading takes seconds, on a slow disk a minute; of several processes, rank 0 logs it
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).info("Loading PyTorch.")
