"""Methods, losses and targets by name: kdedge's, and installed packages'.

kdedge's own are the files of a folder, or folders with certain files; shared code has a name with a
leading underscore, or one that is listed. Installed packages join through a group of entry points.
Listing imports nothing; loading imports one module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import (
    EntryPoint,
    EntryPoints,
    PackageNotFoundError,
    entry_points,
    version,
)
from pathlib import Path
from types import ModuleType

from kdedge.errors import KdedgeError, MissingPackage, RecipeError, SetupError, one_line, suggestion

TRAINING_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "tensorboard": "tensorboard",
}
"""Module -> distribution that holds it, all in the extra train."""


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PENDING_WARNINGS: list[str] = []
"""What is logged before PyTorch is loaded or a file is measured."""


def log_pending_warnings() -> None:
    """Logs what waits until the work begins."""
    while PENDING_WARNINGS:
        logging.getLogger(__name__).warning("%s", PENDING_WARNINGS.pop())


def need(extra: str, purpose: str, *modules: str) -> None:
    """Checks that optional packages are installed.

    Args:
        extra: the kdedge extra that installs them.
        purpose: what needs them, as the start of a sentence: "Training".
        modules: names for the import.

    Raises:
        MissingPackage: one of them is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            package = TRAINING_PACKAGES.get(module, module.replace("_", "-"))
            raise MissingPackage(package, extra=extra, purpose=purpose)


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: one of them is not installed.
    """
    need("train", purpose, *TRAINING_PACKAGES)
    log_pending_warnings()
    # Loading takes seconds, on a slow disk a minute; of several processes, rank 0 logs it
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).info("Loading PyTorch.")


@dataclass(frozen=True)
class Plugins:
    """The plugins of one kind.

    Attributes:
        noun: what one is called in messages.
        package: the package of kdedge's own.
        group: the group of entry points.
        parts: for each module of a plugin, the names that it has to hold, with what each is; the
            plugin itself is "". Of folders, the first is a file that each has.
        shared: files in the folder that are no plugins.
    """

    noun: str
    package: str
    group: str
    parts: Mapping[str, Mapping[str, str]]
    shared: tuple[str, ...] = ()

    def own(self) -> list[str]:
        """Names of kdedge's own, sorted."""
        folder = Path(__file__).parents[1].joinpath(*self.package.split("."))
        first = next(iter(self.parts))
        if first:
            paths = [file.parent.name.replace("_", "-") for file in folder.glob(f"*/{first}.py")]
        else:
            paths = [file.stem for file in folder.glob("*.py")]
        return sorted(name for name in paths if name[0] != "_" and name not in self.shared)

    def outside(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name; kdedge's own names are left out."""
        included, points = self.own(), _installed(self.group, tuple(sys.path))
        found = {point.name: point for point in points if point.name not in included}
        return dict(sorted(found.items()))

    def names(self) -> tuple[str, ...]:
        """Names of all, sorted."""
        return tuple(sorted([*self.own(), *self.outside()]))

    def load(self, name: str, module: str = "") -> ModuleType:
        """Imports a plugin's module.

        Raises:
            RecipeError: there is no plugin of this name.
            MissingPackage: the module needs a package, such as torch, that is not installed.
            SetupError: an installed package's module cannot be imported or lacks a part.
        """
        if name in self.own():
            return self._load_own(name, module)
        point = self.outside().get(name)
        if point is None:
            raise RecipeError(
                f'There is no {self.noun} "{name}".\n  {suggestion(name, self.names())}'
            )
        what = f'The {self.noun} "{name}" from {point.value}'
        try:
            loaded = importlib.import_module(f"{point.module}.{module}".rstrip("."))
        except KdedgeError:
            raise
        except Exception as error:  # another package may raise anything at import
            raise SetupError(
                f"{what} cannot be imported: {one_line(error)}.\n"
                "  Update or remove the package that it comes from."
            ) from error
        lacking = [part for part in self.parts[module] if not hasattr(loaded, part)]
        if lacking:
            texts = "".join(f"\n  {part}: {self.parts[module][part]}" for part in lacking)
            raise SetupError(f"{what} lacks {' and '.join(lacking)}.{texts}")
        return loaded

    def _load_own(self, name: str, module: str) -> ModuleType:
        path = f"{self.package}.{name.replace('-', '_')}.{module}".rstrip(".")
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in TRAINING_PACKAGES:
                raise
            raise MissingPackage(
                TRAINING_PACKAGES[package], extra="train", purpose=f"The {self.noun} {name}"
            ) from error


@functools.lru_cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """A group's entry points; each package has a file of them, so they are read once."""
    return entry_points(group=group)
