"""Methods, losses and targets by name: kdedge's own, and those of installed packages.

Each of kdedge's own plugins is a file in one folder, or a folder with certain files. Other files
there have a leading underscore or are listed as shared. Installed packages join through a group of
entry points. Listing imports nothing; loading imports one module.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType

from kdedge.errors import KdedgeError, RecipeError, SetupError
from kdedge.messages import one_line, suggestion
from kdedge.packages import PACKAGES


@dataclass(frozen=True)
class Plugins:
    """The plugins of one kind.

    Attributes:
        noun: the kind's name in messages, such as `method`.
        package: the package that holds kdedge's own plugins.
        group: the group of entry points.
        parts: for each module of a plugin, the names that it must define, each with a description.
            The module "" is the plugin itself. If plugins are folders, the first module is a file
            that each folder has.
        shared: files in the package that are not plugins.
    """

    noun: str
    package: str
    group: str
    parts: Mapping[str, Mapping[str, str]]
    shared: tuple[str, ...] = ()

    def own(self) -> list[str]:
        """Names of kdedge's own plugins, sorted."""
        folder = Path(__file__).parents[1].joinpath(*self.package.split("."))
        part = next(iter(self.parts))
        if part:
            paths = [file.parent.name.replace("_", "-") for file in folder.glob(f"*/{part}.py")]
        else:
            paths = [file.stem for file in folder.glob("*.py")]
        return sorted(name for name in paths if name[0] != "_" and name not in self.shared)

    def outside(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name; kdedge's own names are left out."""
        own, points = self.own(), _installed(self.group, tuple(sys.path))
        outside = {point.name: point for point in points if point.name not in own}
        return dict(sorted(outside.items()))

    def names(self) -> tuple[str, ...]:
        """Names of all plugins, sorted."""
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
            if package not in PACKAGES:
                raise
            raise PACKAGES[package].missing(f"the {self.noun} {name}") from error


@functools.lru_cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """A group's entry points, cached: each installed package has a file of them to read."""
    return entry_points(group=group)
